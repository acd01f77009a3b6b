"""From approval to a ready visit, beside the request that approved it: read the cohort, start the enclave.

No value of a patient is read before the budget is reserved, for everybody. Whom the cohort would include is looked up
before, when an operator approves: a patient who cannot afford the plan makes the approval fail, and so, for the
operator's eyes alone, does a cohort that could teach nothing (``visit_foresight``). When the cohort is read, the
reservation is narrowed to those it includes, before any of their values is written; a patient who could no longer
afford it, or a cohort below the permit's minimum, ends the visit and its files, and nobody learns who or how many. What
stops the reading of the data is for the node's operators, in its log: the coordinator sees a visit's code and reason,
and to it all causes are one (VHT-COHORT-UNREADABLE), because a component's view could be written to stop at one
patient.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from connector.enclave.visit import EnclaveInfo, Gate, VisitSpec
from connector.fhir.codes import CodeMaps, read_code_maps
from connector.governance.cost_foresight import CostForesight
from connector.governance.opt_outs import excluded_subjects
from connector.governance.pseudonyms import pseudonymiser
from connector.governance.visit_foresight import OPERATORS_OWN, Foresight
from connector.governance.visits import Visits, request_of
from connector.settings import NodeFiles
from connector.store.models import VisitRow
from connector.views.cohort import Outcomes
from connector.views.cohort_specification import CohortSpecification
from connector.views.inclusion import compile_inclusion
from vht_federate.components.digest import ComponentFiles
from vht_federate.domain.isolation import IsolationLevel
from vht_federate.domain.permit import Permit
from vht_federate.domain.split import is_test
from vht_federate.errors import CohortError, RefusedError, UnavailableError, VhtError
from vht_federate.evidence.events import CohortBuilt, EnclaveStarted
from vht_federate.privacy.participation import Included

__all__ = ["CohortBuilder", "Enclaves", "Preparation"]

log = logging.getLogger("vht.node.preparation")
NARROWINGS = 6  # attempts to narrow a reservation while other visits go on
PAUSE_S = 0.5


class Enclaves(Protocol):
    """The host of all enclaves of a node (``connector.enclave.host.EnclaveHost``)."""

    def start(self, visit: VisitSpec, component_dir: Path, gate: Gate) -> EnclaveInfo: ...

    def stop(self, visit_id: str) -> None: ...

    def close(self) -> None: ...


class CohortBuilder(Protocol):
    """Reads the permitted columns of the store (``connector.views.build_cohort``)."""

    def __call__(
        self,
        store_dir: Path,
        specification: CohortSpecification,
        destination: Path,
        *,
        included: Callable[[list[str], list[int], dict[str, list[str]]], None],
        outcomes: Callable[[Outcomes], None] | None = None,
    ) -> Any: ...


class _Seen(Exception):
    """Whom a cohort would include."""

    def __init__(self, included: Included) -> None:
        super().__init__()
        self.included = included


class Preparation:
    """Prepares approved visits one after the other, and clears up behind visits that ended."""

    def __init__(
        self,
        visits: Visits,
        files: NodeFiles,
        enclaves: Enclaves,
        gate: Gate,
        build_cohort: CohortBuilder,
    ) -> None:
        self._visits, self._files, self._enclaves, self._gate = visits, files, enclaves, gate
        self._build_cohort = build_cohort
        self._prepare = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vht-prepare")
        self._clear = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vht-clear")
        self._foresight = CostForesight()

    def approved(self, visit_id: str) -> None:
        self._submit(self._prepare, self.prepare, visit_id)

    def ended(self, visit_id: str, grace_s: float) -> None:
        self._foresight.leave(visit_id)
        self._submit(self._clear, self.clear, visit_id, grace_s)

    def prepare(self, visit_id: str) -> None:
        """Bring an approved visit to ready, or end it as failed with the code of what went wrong."""
        visit = self._visits.get(visit_id)
        if visit.state != "approved":
            return
        try:
            self._build(visit)
            if self._visits.get(visit_id).state != "approved":
                self.clear(visit_id)
                return
            info = self._start(visit)
            self._foresight.expect(visit_id)  # before it is ready: its end may come at once
            if self._visits.ready(visit_id, info.isolation.value):
                self._foresight.price(visit_id, request_of(visit).plan)
            else:
                self.clear(visit_id)
        except VhtError as error:
            log.warning("preparation refused", extra={"facts": {"visit": visit_id, "code": error.code}})
            self._visits.end(visit_id, "failed", code=error.code, reason=error.message)
        except Exception as error:
            log.exception("preparation failed", extra={"facts": {"visit": visit_id}})
            reason = f"the visit could not be prepared ({type(error).__name__})"
            self._visits.end(visit_id, "failed", code="VHT-INTERNAL", reason=reason)

    def clear(self, visit_id: str) -> None:
        """Stop the visit's enclave and delete everything the visit left at this node. Doing it twice is fine."""
        self._foresight.leave(visit_id)
        try:
            self._enclaves.stop(visit_id)
        finally:
            shutil.rmtree(self._files.visit(visit_id), ignore_errors=True)

    def lost(self, visit_id: str, error: VhtError) -> None:
        """The enclave of a ready visit ended by itself: so does the visit."""
        self._visits.end(visit_id, "failed", code=error.code, reason=error.message)

    def clear_leftovers(self) -> None:
        """Delete folders of visits that have none running: what a crash left behind."""
        for folder in self._files.visits.glob("*"):
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Finish the step in progress and take no more."""
        self._foresight.close()
        self._prepare.shutdown(wait=True, cancel_futures=True)
        self._clear.shutdown(wait=True)

    # --- parts --------------------------------------------------------------------------------------------------

    def foresee(self, visit: VisitRow) -> Foresight | None:
        """Whom the cohort of ``visit`` would include by today's data, and who has the outcome; nothing is written.

        None where that cannot be read: why is found, and told, when the visit is prepared. Raises InputError
        VHT-INPUT-CODE-MAP for a code map of the hospital's own that is none.
        """
        outcomes: Outcomes = []

        def seen(subjects: list[str], buckets: list[int], accounts: dict[str, list[str]]) -> None:
            raise _Seen(_included(subjects, buckets, accounts))

        try:
            with self._visits.database.read() as session:
                excluded = excluded_subjects(session, self._visits.permit_of(visit))
            specification = self._specification(visit, excluded, read_code_maps(self._files.code_maps))
            self._build_cohort(
                self._files.fhir, specification, self._files.cohort(visit.id), included=seen, outcomes=outcomes.extend
            )
        except _Seen as look:
            return Foresight(look.included, outcomes)
        except UnavailableError:
            raise
        except Exception as error:
            if isinstance(error, VhtError) and error.code in OPERATORS_OWN:
                raise
            facts = {"visit": visit.id, "code": error.code if isinstance(error, VhtError) else "VHT-INTERNAL"}
            log.warning("whom the cohort would include cannot be read", extra={"facts": facts})
        return None

    def _specification(
        self, visit: VisitRow, excluded: set[str], maps: CodeMaps, pseudonym: Callable[[str], str] | None = None
    ) -> CohortSpecification:
        permit, request = self._visits.permit_of(visit), request_of(visit)
        files = ComponentFiles.read(self._visits.admission.require_component(request))
        files.expect(request.component.digest)
        permitted = tuple(column for column in request.columns if column in permit.columns)
        cohort_view = files.cohort_view(request.component.profile)
        if cohort_view is not None:
            compile_inclusion(cohort_view)  # what is wrong with the view itself is no secret
        return CohortSpecification(
            files.component(), request.component.profile, permitted, excluded, pseudonym, cohort_view, maps
        )

    def _build(self, visit: VisitRow) -> None:
        permit = self._visits.permit_of(visit)
        with self._visits.steps.step() as step:
            excluded = excluded_subjects(step.session, permit)
            pseudonym = pseudonymiser(step.session, permit.permit_id, visit.created_at)
        with _one_cause(visit, beside=()):  # of a file of the hospital's own nothing is told outside
            maps = read_code_maps(self._files.code_maps)
        specification = self._specification(visit, excluded, maps, pseudonym)
        destination = self._files.cohort(visit.id)
        destination.parent.mkdir(parents=True, exist_ok=True)
        counts: list[int] = []
        own: list[UnavailableError] = []  # the node's, of whose cause the data say nothing

        def include(subjects: list[str], buckets: list[int], accounts: dict[str, list[str]]) -> None:
            counts.append(len(subjects))
            try:
                self._include(visit, permit, len(subjects), _included(subjects, buckets, accounts))
            except UnavailableError as error:
                own.append(error)
                raise

        with _one_cause(visit, beside=own):
            self._build_cohort(self._files.fhir, specification, destination, included=include)
        if not counts:
            raise CohortError("the cohort was built without a word of whom it includes", code="VHT-COHORT-PATIENTS")
        built = CohortBuilt(
            columns=tuple(sorted(specification.columns)),
            minimum_cohort_met=True,
            opt_outs_as_of=permit.issued_at.isoformat(),
            code_maps=specification.maps.digests,
        )
        self._visits.evidence.record(built, permit_id=visit.permit_id, visit=visit.id)

    def _include(self, visit: VisitRow, permit: Permit, patients: int, included: Included) -> None:
        if patients < permit.minimum_cohort:
            raise CohortError(
                f"the cohort at this node is below the permit's minimum of {permit.minimum_cohort} patients",
                code="VHT-COHORT-SMALL",
            )
        for _ in range(NARROWINGS - 1):
            try:
                self._narrow(visit, permit, included)
            except UnavailableError as error:  # every round of another visit changes the ledger
                if error.code != "VHT-UNAVAILABLE-LEDGER" or self._visits.endings.of(visit.id) is not None:
                    raise
                time.sleep(PAUSE_S)
            else:
                return
        self._narrow(visit, permit, included)

    def _narrow(self, visit: VisitRow, permit: Permit, included: Included) -> None:
        ledger = self._visits.ledger
        with self._visits.steps.step_after(
            lambda session: ledger.placed(session, visit, permit, included), ledger.version
        ) as (step, placed):
            ledger.include_priced(step.session, placed)

    def _start(self, visit: VisitRow) -> EnclaveInfo:
        request = request_of(visit)
        spec = VisitSpec(
            visit=visit.id,
            study_id=request.study_id,
            component=request.component,
            plan=request.plan,
            codebook=request.codebook,
            cohort=self._files.cohort(visit.id).resolve(),
            folder=self._files.visit(visit.id).resolve(),
            closed=self._files.state,
            isolation=IsolationLevel.strictest(
                self._visits.admission.isolation, self._visits.permit_of(visit).enclave_isolation
            ),
        )
        folder = self._visits.admission.require_component(request)
        info = self._enclaves.start(spec, folder, self._gate)
        started = EnclaveStarted(
            component_digest=info.component_digest,
            isolation=info.isolation.value,
            walls=info.walls,
            jobs=info.jobs,
            device=info.device,
        )
        self._visits.evidence.record(started, permit_id=visit.permit_id, visit=visit.id)
        return info

    @staticmethod
    def _submit(pool: ThreadPoolExecutor, step: Callable[[str], None], visit_id: str, delay_s: float = 0.0) -> None:
        def run() -> None:
            try:
                time.sleep(delay_s)
                step(visit_id)
            except Exception:
                log.exception("a step beside the requests failed", extra={"facts": {"visit": visit_id}})

        try:
            pool.submit(run)
        except RuntimeError:  # the node is stopping: it clears up by itself
            log.info("not started, the node is stopping", extra={"facts": {"visit": visit_id}})


def _included(subjects: list[str], buckets: list[int], accounts: dict[str, list[str]]) -> Included:
    """Whom the ledger charges: each patient under every account of theirs."""
    charged = [
        (account, is_test(bucket))
        for subject, bucket in zip(subjects, buckets, strict=True)
        for account in accounts.get(subject, [subject])
    ]
    return Included.of([account for account, _ in charged], [test for _, test in charged], accounts.values())


@contextlib.contextmanager
def _one_cause(visit: VisitRow, *, beside: Sequence[UnavailableError]) -> Iterator[None]:
    """What the data stop becomes CohortError VHT-COHORT-UNREADABLE, its cause logged.

    Refusals stay as they are, and so do the errors that are listed in ``beside`` by then.
    """
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:
        if any(error is other for other in beside):
            raise
        code, message = (error.code, error.message) if isinstance(error, VhtError) else ("VHT-INTERNAL", "")
        facts = {"visit": visit.id, "code": code, "cause": message}
        log.exception("the cohort cannot be read", extra={"facts": facts})
        raise CohortError(
            "the cohort cannot be read from this node's data",
            code="VHT-COHORT-UNREADABLE",
            hint="the node's operators find the cause in its log",
        ) from None
