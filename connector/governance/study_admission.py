"""What a node asks before it lets a study in: one verdict, one code, in the log before anybody hears of it.

No step reads patients' data. The order is: the permit itself, its time and status, who signed the study, who presents
it, whether the permit covers what it asks, whether it concerns this node, whether its component is installed here, and
the budget.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import jwt
from sqlalchemy.orm import Session

from connector.enclave.isolation_probe import OfferedIsolation
from connector.enclave.job_registry import registered_jobs
from connector.governance.installed_components import InstalledComponents
from connector.governance.ledger import Ledger
from connector.governance.open_requests import OpenRequests
from connector.governance.permit_status import PermitStatus
from connector.governance.refusal_quota import RefusalQuota
from connector.governance.seen_proofs import SeenProofs
from vht_federate.components.contract import read_component
from vht_federate.domain.feasibility import FeasibilityQuestion
from vht_federate.domain.isolation import IsolationLevel
from vht_federate.domain.law import DataCategory, purpose_open_to
from vht_federate.domain.permit import Permit
from vht_federate.domain.study import StudyRequest
from vht_federate.errors import ComponentError, PermitError, RefusedError, VhtError
from vht_federate.evidence.events import PermitAccepted, PermitChecked
from vht_federate.evidence.log import EvidenceLog
from vht_federate.permits.check import (
    check_isolation,
    check_question,
    check_request,
    read_permit,
    read_question,
    read_study,
)
from vht_federate.signing.canonical import digest_of, sha256_hex
from vht_federate.signing.keys import PublicKey
from vht_federate.signing.possession import PresentedProof

__all__ = ["AdmittedQuestion", "AdmittedStudy", "StudyAdmission"]

log = logging.getLogger("vht.node.admission")
OLDEST_REQUEST = timedelta(hours=24)
CLOCKS_DIFFER = timedelta(minutes=5)
STRANGERS = ""  # who send what a data user signed long ago have their requests open together, not as the data user
NOT_ITS_COORDINATOR = ("VHT-REFUSED-COORDINATOR", "VHT-REFUSED-PROOF", "VHT-REFUSED-RATE")
Asked = TypeVar("Asked", StudyRequest, FeasibilityQuestion)


@dataclass(frozen=True)
class AdmittedStudy:
    """A study that may visit, once an operator approves."""

    permit: Permit
    request: StudyRequest
    request_digest: str
    dataset_id: str
    status_serial: int


@dataclass(frozen=True)
class AdmittedQuestion:
    """A feasibility question that may be answered, as far as the budget goes."""

    permit: Permit
    question: FeasibilityQuestion
    digest: str
    status_serial: int


@dataclass(frozen=True)
class StudyAdmission:
    """The rules of one node that holds the dataset ``dataset_id``."""

    dataset_id: str
    issuer: PublicKey
    status: PermitStatus
    installed: InstalledComponents
    ledger: Ledger
    evidence: EvidenceLog
    clock: Callable[[], datetime]
    refusals: RefusalQuota
    isolation: IsolationLevel  # below which this node starts no enclave
    offered: Callable[[], OfferedIsolation]
    open_requests: OpenRequests = field(default_factory=lambda: OpenRequests(each=2, together=4, seconds=15))
    proofs: SeenProofs = field(default_factory=SeenProofs)

    def admit(
        self, permit_token: str, study_token: str, user_key: dict[str, Any], proof: PresentedProof
    ) -> AdmittedStudy:
        """Everything but age and budget. A refusal is logged as ``permit.checked`` and raised with its own code.

        Whoever does not hold the key that the study names as its coordinator's is refused before anything is computed.
        """

        def presented(request: StudyRequest) -> None:
            self._require_coordinator(request, proof)

        permit, request, digest, serial = self._judged(
            permit_token, study_token, user_key, read_study, presented, self._check_study
        )
        return AdmittedStudy(permit, request, digest, self.dataset_id, serial)

    def require_permit(self, permit_token: str, categories: Collection[DataCategory]) -> Permit:
        """A permit that is good at this moment for the use of this node's dataset, apart from any study.

        Its signature, time and status hold, it names the dataset, all of the dataset's ``categories`` (rows carry
        none of their own) and a purpose that is open to one of its users. Raises PermitError or RevokedError.
        """
        permit = self._permit(permit_token)
        self.status.require_good(permit)
        if self.dataset_id not in permit.dataset_ids:
            raise PermitError(f"the permit does not name dataset {self.dataset_id}", code="VHT-PERMIT-DATASET")
        outside = sorted(set(categories) - set(permit.categories))
        if outside:
            raise PermitError(f"data category {', '.join(outside)} is not in the permit", code="VHT-PERMIT-CATEGORY")
        if not any(purpose_open_to(purpose, user.kind) for purpose in permit.purposes for user in permit.data_users):
            raise PermitError(
                "no purpose of the permit is open to any of its users (Article 53(2))", code="VHT-PERMIT-PURPOSE"
            )
        return permit

    def admit_question(self, permit_token: str, question_token: str, user_key: dict[str, Any]) -> AdmittedQuestion:
        """A feasibility question, as ``admit`` judges a study: permit, signature, what is asked, and its age."""
        permit, question, digest, serial = self._judged(
            permit_token, question_token, user_key, read_question, lambda _: None, self._check_question
        )
        return AdmittedQuestion(permit, question, digest, serial)

    def _judged(
        self,
        permit_token: str,
        token: str,
        user_key: dict[str, Any],
        read: Callable[[str, Permit, PublicKey], Asked],
        presented: Callable[[Asked], None],
        check: Callable[[Permit, Asked], None],
    ) -> tuple[Permit, Asked, str, int]:
        """The permit, what is asked under it, that one's digest, and the serial of the status list."""
        about: dict[str, Any] = {"permit_sha256": sha256_hex(permit_token.encode())}
        request: Asked | None = None
        try:
            permit = self._permit(permit_token)
            about["permit_id"] = permit.permit_id
            serial = self.status.require_good(permit).serial
            about["status_serial"] = serial
            request = read(token, permit, PublicKey.from_jwk(user_key))
            digest = digest_of(request.claims())
            about["request_digest"] = digest
            presented(request)
        except VhtError as error:
            sender = None if error.code in NOT_ITS_COORDINATOR else self._sender(request)
            self.refused(error, user_kid=sender, **about)
            raise
        with self.open_requests.of(self._sender(request) or STRANGERS):
            try:
                check(permit, request)
            except VhtError as error:
                self.refused(error, user_kid=self._sender(request), **about)
                raise
        return permit, request, digest, serial

    def _sender(self, request: StudyRequest | FeasibilityQuestion | None) -> str | None:
        """The data user who sends ``request``; None for whoever may have found it: a stranger."""
        return request.user_kid if request is not None and self._fresh(request) else None

    def _require_coordinator(self, request: StudyRequest, proof: PresentedProof) -> None:
        """Raises RefusedError VHT-REFUSED-COORDINATOR for a study that names no coordinator, VHT-REFUSED-PROOF."""
        if request.coordinator is None:
            raise RefusedError(
                "the study does not name its coordinator's key, so anybody who holds its text could present it",
                code="VHT-REFUSED-COORDINATOR",
                hint="ask again with a coordinator of this version: 'vht study run' names its key",
            )
        self.require_holder(request.coordinator, proof)

    def _check_study(self, permit: Permit, request: StudyRequest) -> None:
        check_request(permit, request)
        self._concerns_this_node(request)
        self.require_component(request)
        registered_jobs({job for job, _ in request.plan.calls()})
        self._require_isolation(permit)

    def _require_isolation(self, permit: Permit) -> None:
        """What this machine gives an enclave is enough for the permit and for this node."""
        offered = self.offered()
        check_isolation(permit, offered.level)
        if not offered.level.covers(self.isolation):
            raise RefusedError(
                f"this node starts no enclave: it requires {self.isolation}, and its machine gives {offered.level}",
                code="VHT-REFUSED-ISOLATION",
                hint="its operator sees what is missing with 'vht node isolation'",
            )

    def _check_question(self, permit: Permit, question: FeasibilityQuestion) -> None:
        check_question(permit, question)
        self._concerns_this_node(question)
        if not self._fresh(question):
            raise _stale()

    def require_fresh(self, judged: AdmittedStudy) -> None:
        """The request was signed a moment ago, so nobody else can have it. A refusal is logged and raised."""
        if self._fresh(judged.request):
            return
        error = _stale()
        self.refused(error, permit_id=judged.permit.permit_id, request_digest=judged.request_digest)
        raise error

    def require_holder(self, key: PublicKey, proof: PresentedProof, token: str | None = None) -> None:
        """``proof`` was made with ``key`` for this node and this request, and comes here for the first time.

        Raises RefusedError VHT-REFUSED-PROOF.
        """
        now = self.clock()
        self.proofs.use(key.kid, proof.check(key, recipient=self.dataset_id, now=now, token=token), now)

    def afford(self, session: Session, visit_id: str, judged: AdmittedStudy) -> None:
        """The budget, against what was spent and reserved before. A refusal is logged and raised."""
        try:
            self.ledger.afford(session, visit_id, judged.permit, judged.request, judged.dataset_id)
        except VhtError as error:
            self.refused(
                error,
                user_kid=judged.request.user_kid,
                permit_id=judged.permit.permit_id,
                request_digest=judged.request_digest,
                status_serial=judged.status_serial,
            )
            raise

    def accepted(self, judged: AdmittedStudy, visit_id: str) -> None:
        accepted = PermitAccepted(
            permit_id=judged.permit.permit_id,
            outcome="accepted",
            code=None,
            request_digest=judged.request_digest,
            status_serial=judged.status_serial,
        )
        self.evidence.record(accepted, permit_id=judged.permit.permit_id, visit=visit_id)

    def refused(
        self,
        error: VhtError,
        *,
        permit_id: str | None = None,
        visit_id: str | None = None,
        user_kid: str | None = None,
        **about: Any,
    ) -> None:
        """Log a refusal. Of a visit all are logged; of a data user's or a stranger's (None) requests some, others
        counted (``refusal_quota``).
        """
        checked = PermitChecked(permit_id=permit_id, outcome="refused", code=error.code, **about)
        if visit_id is not None:
            self.evidence.record(checked, permit_id=permit_id, visit=visit_id)
        elif not self.refusals.log(checked, user_kid):
            return
        log.info("refused", extra={"facts": {"code": error.code, "permit": permit_id}})

    def require_component(self, request: StudyRequest) -> Path:
        """Folder of the component, whose files hash to what the permit and the study name."""
        folder = self.installed.folder(request.component.digest)
        component = read_component(folder)
        if component.name != request.component.name:
            raise ComponentError(
                f"the files with this digest are component {component.name}, not {request.component.name}",
                code="VHT-COMPONENT-NAME",
            )
        if request.component.profile not in component.profiles:
            raise ComponentError(
                f"component {component.name} has no profile {request.component.profile}", code="VHT-COMPONENT-PROFILE"
            )
        missing = sorted(set(component.columns(request.component.profile)) - set(request.columns))
        if missing:
            raise PermitError(
                f"the study's component reads columns that the study does not ask for: {', '.join(missing)}",
                code="VHT-PERMIT-COLUMN",
            )
        return folder

    def _fresh(self, request: StudyRequest | FeasibilityQuestion) -> bool:
        age = self.clock() - request.created_at
        return -CLOCKS_DIFFER <= age <= OLDEST_REQUEST

    def _permit(self, token: str) -> Permit:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError as error:
            raise PermitError("this is not a signed permit", code="VHT-PERMIT-MALFORMED") from error
        if kid is not None and kid != self.issuer.kid:
            raise PermitError(
                "this permit comes from an issuer that this node does not trust",
                code="VHT-PERMIT-ISSUER",
                hint="the node's operator trusts one issuer: issuer.pub.json in the state directory",
            )
        return read_permit(token, self.issuer)

    def _concerns_this_node(self, request: StudyRequest | FeasibilityQuestion) -> None:
        if self.dataset_id not in request.dataset_ids:
            raise PermitError(
                f"neither study nor permit names this node's dataset {self.dataset_id}", code="VHT-PERMIT-DATASET"
            )


def _stale() -> RefusedError:
    return RefusedError(
        "this request was signed more than 24 hours ago, or its time lies ahead of this node's clock",
        code="VHT-REFUSED-STALE",
        hint="sign a new request; if it is new, compare the clocks of both machines",
    )
