"""Pure permit checks: what a hospital, a coordinator and an auditor ask of a permit before they act on it.

Nothing here reads a file, a clock or the network. Each rule is one function and each refusal one code:

    read_permit     VHT-PERMIT-SIGNATURE, VHT-PERMIT-MALFORMED
    read_status     VHT-PERMIT-STATUS-SIGNATURE
    check_status    VHT-PERMIT-STATUS-SIGNATURE, VHT-PERMIT-STATUS-STALE, VHT-PERMIT-REVOKED (RevokedError)
    check_time      VHT-PERMIT-NOT-YET, VHT-PERMIT-EXPIRED
    read_study, read_question   VHT-PERMIT-USER, VHT-PERMIT-STUDY-SIGNATURE
    check_isolation VHT-PERMIT-ISOLATION
    check_question  as check_request, without columns, components and a plan; VHT-PERMIT-RELEASE
    check_request   VHT-PERMIT-MISMATCH, -USER, -PURPOSE, -CATEGORY, -DATASET, -COLUMN, -COMPONENT, -RELEASE,
                    VHT-BUDGET-COSTLY, VHT-BUDGET-PERMIT
    check_job       VHT-PERMIT-RELEASE
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from pydantic import ValidationError

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.feasibility import FEASIBILITY_TYP, FeasibilityQuestion
from vht_federate.domain.isolation import IsolationLevel
from vht_federate.domain.law import purpose_open_to
from vht_federate.domain.permit import PERMIT_TYP, STATUS_TYP, DataUser, Permit, StatusList
from vht_federate.domain.plan import RELEASE_TYPES, StudyPlan
from vht_federate.domain.study import STUDY_TYP, StudyRequest
from vht_federate.errors import BudgetError, PermitError, RevokedError, VerificationError
from vht_federate.signing.keys import PublicKey

__all__ = [
    "EPSILON_TOLERANCE",
    "Composition",
    "check_isolation",
    "check_job",
    "check_question",
    "check_request",
    "check_status",
    "check_time",
    "read_permit",
    "read_question",
    "read_status",
    "read_study",
]

Composition = Callable[[Sequence[PrivacyEvent], float], Mapping[str, float]]
"""(events, delta) -> epsilon by population."""

EPSILON_TOLERANCE = 1e-6  # of the numerical accountant, never of the law


def read_permit(token: str, issuer: PublicKey) -> Permit:
    """The permit in ``token``, where ``issuer`` signed it."""
    try:
        claims = issuer.verify(token, typ=PERMIT_TYP)
    except VerificationError as error:
        raise PermitError(
            "this permit was not signed by the permit issuer that we trust",
            code="VHT-PERMIT-SIGNATURE",
            hint="compare the issuer's key (vht permit show --issuer) with the one configured here",
        ) from error
    return Permit.from_claims(claims)


def read_status(status_token: str, issuer: PublicKey) -> StatusList:
    """The status list in ``status_token``, where ``issuer`` signed it. Its age is not judged."""
    try:
        return StatusList.model_validate(issuer.verify(status_token, typ=STATUS_TYP))
    except (VerificationError, ValidationError) as error:
        raise PermitError(
            "this status list was not signed by the permit issuer that we trust",
            code="VHT-PERMIT-STATUS-SIGNATURE",
        ) from error


def check_status(
    status_token: str, issuer: PublicKey, permit: Permit, now: datetime, *, minimum_serial: int = 0
) -> StatusList:
    """Fail closed unless a fresh list says that ``permit`` is good (Article 63(3)).

    ``minimum_serial`` is the greatest serial seen before: an older list is stale however long it says it is valid.
    A list from an issuer whose clock is ahead of ours counts at its own time, so that skew never delays a revocation.
    """
    status = read_status(status_token, issuer)
    if status.valid_until < now or status.serial < minimum_serial:
        raise PermitError(
            "the issuer's status list is stale, so nothing may run",
            code="VHT-PERMIT-STATUS-STALE",
            hint="is the permit issuer's service reachable, and are both clocks right?",
        )
    if status.is_revoked(permit.permit_id, max(now, status.issued_at)):
        raise RevokedError(f"permit {permit.permit_id} is revoked", code="VHT-PERMIT-REVOKED")
    return status


def check_time(permit: Permit, now: datetime) -> None:
    """``not_before <= now < expires_at``."""
    if now < permit.not_before:
        raise PermitError(f"permit {permit.permit_id} is not valid yet", code="VHT-PERMIT-NOT-YET")
    if now >= permit.expires_at:
        raise PermitError(
            f"permit {permit.permit_id} has expired", code="VHT-PERMIT-EXPIRED", hint="ask its issuer to renew it"
        )


def read_study(token: str, permit: Permit, user_key: PublicKey) -> StudyRequest:
    """The study request in ``token``, signed by ``user_key``, which must be the key of a data user of ``permit``.

    Raises PermitError, or InputError VHT-INPUT-STUDY for a request that does not fit its schema.
    """
    request = StudyRequest.from_claims(_signed_by_user(token, permit, user_key, STUDY_TYP))
    _own(request, user_key)
    return request


def read_question(token: str, permit: Permit, user_key: PublicKey) -> FeasibilityQuestion:
    """The feasibility question in ``token``, as ``read_study`` reads a study. Raises InputError VHT-INPUT-QUESTION."""
    question = FeasibilityQuestion.from_claims(_signed_by_user(token, permit, user_key, FEASIBILITY_TYP))
    _own(question, user_key)
    return question


def _signed_by_user(token: str, permit: Permit, user_key: PublicKey, typ: str) -> dict[str, Any]:
    _user(permit, user_key.kid)
    try:
        return user_key.verify(token, typ=typ)
    except VerificationError as error:
        raise PermitError(
            "the request was not signed by the data user it names", code="VHT-PERMIT-STUDY-SIGNATURE"
        ) from error


def _own(request: StudyRequest | FeasibilityQuestion, user_key: PublicKey) -> None:
    if request.user_kid != user_key.kid:
        _refuse("USER", "the request names another user than the one who signed it")


def check_request(permit: Permit, request: StudyRequest, *, compose: Composition | None = None) -> None:
    """Is all that ``request`` asks inside ``permit``? The first rule that says no is raised.

    ``compose`` computes epsilon by population; by default the project's own accountant.
    """
    _check_asked(permit, request)
    _within("COLUMN", "column", request.columns, permit.columns)
    _within("COMPONENT", "component digest", [request.component.digest], permit.component_digests)
    _within("RELEASE", "release type", sorted(request.plan.release_types()), permit.release_types)
    _check_budget(permit, request, compose)


def check_job(permit: Permit, job: str) -> None:
    """May what ``job`` gives leave a node under ``permit``? A job without a release type is refused, too."""
    release_type = RELEASE_TYPES.get(job)
    if release_type not in permit.release_types:
        _refuse("RELEASE", f"the permit allows no {release_type or 'output of this job'} to be released")


def check_isolation(permit: Permit, held: IsolationLevel) -> None:
    """Is an enclave that is closed off as ``held`` says enough for ``permit``?"""
    demanded = permit.enclave_isolation
    if demanded is not None and not held.covers(demanded):
        _refuse("ISOLATION", f"the permit demands enclaves of level {demanded}, and here they are of level {held}")


def check_question(permit: Permit, question: FeasibilityQuestion) -> None:
    """Is the question inside ``permit``? Its answer is a figure: the permit must allow metrics to be made of it."""
    _check_asked(permit, question)
    if "metrics" not in permit.release_types:
        _refuse("RELEASE", "the permit allows no figures to leave, and the answer is one")


def _check_asked(permit: Permit, request: StudyRequest | FeasibilityQuestion) -> None:
    if request.permit_id != permit.permit_id:
        _refuse("MISMATCH", f"the request relies on permit {request.permit_id}, not on {permit.permit_id}")
    user = _user(permit, request.user_kid)
    if request.purpose not in permit.purposes:
        _refuse("PURPOSE", f"purpose {request.purpose} is not in the permit")
    if not purpose_open_to(request.purpose, user.kind):
        _refuse("PURPOSE", f"purpose {request.purpose} is not open to a {user.kind} actor (Article 53(2))")
    _within("CATEGORY", "data category", request.categories, permit.categories)
    _within("DATASET", "dataset", request.dataset_ids, permit.dataset_ids)


def _check_budget(permit: Permit, request: StudyRequest, compose: Composition | None) -> None:
    plan = request.plan
    if plan.delta > permit.delta:
        raise BudgetError(
            f"the plan's delta {plan.delta:g} is above the permit's {permit.delta:g}", code="VHT-BUDGET-PERMIT"
        )
    if compose is None:
        _require_priceable(plan)
    worst = max((compose or _accountant())(plan.events(), plan.delta).values())
    if worst > permit.epsilon + EPSILON_TOLERANCE:
        raise BudgetError(
            f"the plan would spend epsilon {worst:.4f}; the permit's ceiling is {permit.epsilon:g}",
            code="VHT-BUDGET-PERMIT",
            hint="fewer rounds, more noise, or another permit",
        )


def _accountant() -> Composition:
    """Imported where it is used: dp_accounting is slow to load, and reading a permit does not need it."""
    from vht_federate.privacy.accounting import epsilon_by_population

    return epsilon_by_population


def _require_priceable(plan: StudyPlan) -> None:
    from vht_federate.privacy.accounting import require_priceable

    require_priceable(plan.events(), plan.delta)


def _user(permit: Permit, kid: str) -> DataUser:
    for user in permit.data_users:
        if user.kid == kid:
            return user
    _refuse("USER", "the key that signed this study belongs to no data user of the permit")


def _within(rule: str, noun: str, requested: Sequence[str], allowed: Sequence[str]) -> None:
    outside = sorted(set(requested) - set(allowed))
    if outside:
        _refuse(rule, f"{noun} {', '.join(outside)} is not in the permit")


def _refuse(rule: str, message: str) -> NoReturn:
    raise PermitError(message, code=f"VHT-PERMIT-{rule}")
