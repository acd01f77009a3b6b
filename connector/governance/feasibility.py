"""Feasibility: how many patients here meet a cohort definition, told with noise that the ledger paid for.

Order: the permit and the question are judged; the view is compiled, which reads no data; the budget is reserved and
drawn; only then the data are read, and the answer is in the evidence log before anybody hears of it. The same question
again, by whoever's permit opens the same, is told the same answer for ``STANDS``: asking often averages nothing away.

Nothing but the noised count depends on the data. One patient more or less moves the count by one at most: a row of the
view is of its resource's own patient; where a view elsewhere stops (more than one value, a number out of range), here
the row's cell is empty; and what one resource can add to the view's work is bounded (``cohort_definitions``), so that
nobody's data alone make it late. A view that fails or runs too long all the same counts as nobody, with the same noise;
its error is neither told nor logged. Two things are left: work grows with the number of a patient's resources, and a
view that takes nearly all of its time without a patient may be late with them. The answer is given
``feasibility_seconds`` after the data were opened, however long the view ran.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select

from connector.duckdb_lockdown import locked
from connector.fhir.codes import CodeMaps, read_code_maps
from connector.fhir.persons import persons_of
from connector.fhir.store import Generation, Store
from connector.governance.cohort_definitions import compile_definition, count_query, opened
from connector.governance.open_requests import OpenRequests
from connector.governance.operator_accounts import Actor
from connector.governance.opt_outs import excluded_subjects
from connector.governance.permit_scope import PermitScope
from connector.governance.query_spends import Queries
from connector.governance.study_admission import AdmittedQuestion, StudyAdmission
from connector.settings import NodeSettings
from connector.store.database import Database
from connector.store.models import FeasibilityRow
from connector.views.sql.compilation import Plan
from connector.views.sql.limits import TimeLimit
from vht_federate.errors import BudgetError, CohortError, InputError, RefusedError, UnavailableError, VhtError
from vht_federate.evidence.events import FeasibilityAnswered
from vht_federate.privacy.accounting import calibrate_gaussian
from vht_federate.privacy.noise import NoiseSource, SecureNoise
from vht_federate.privacy.release import Private
from vht_federate.privacy.statistics import Count, PatientValues
from vht_federate.signing.canonical import digest_of

__all__ = ["STANDS", "Feasibility"]

log = logging.getLogger("vht.node.feasibility")
LABEL = "feasibility"
STANDS = timedelta(days=30)
VIEW_SHARE = 0.8  # of the time until the answer, for the view
SECONDS = 30  # when a question that was not taken may be asked again
# In place of DuckDB's own: what would stop the query leaves a cell empty.
_NO_STOP = "CREATE TEMP MACRO error(words) AS NULL"


@dataclass
class Feasibility:
    """Answers for the dataset of ``admission``, within ``feasibility_epsilon`` of the node's settings (0: none).

    ``pause`` waits until an answer is due, which ``timer`` tells.
    """

    admission: StudyAdmission
    queries: Queries
    database: Database
    store: Path
    settings: NodeSettings
    code_maps: Path  # the hospital's own
    clock: Callable[[], datetime]
    noise: Callable[[], NoiseSource] = SecureNoise
    pause: Callable[[float], None] = time.sleep
    timer: Callable[[], float] = time.monotonic
    open_questions: OpenRequests = field(
        default_factory=lambda: OpenRequests(each=2, together=4, seconds=SECONDS, code="VHT-UNAVAILABLE-QUESTION")
    )
    _counting: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def answer(self, permit: str, question: str, user_key: dict[str, Any]) -> dict[str, Any]:
        """The count with noise, or that it is below the smallest cell.

        Raises what the admission and ``cohort_definitions`` refuse with, ViewError for the view, BudgetError
        VHT-BUDGET-CAP, VHT-BUDGET-PERMIT or VHT-BUDGET-QUESTION, RefusedError VHT-REFUSED-FEASIBILITY, CohortError
        VHT-COHORT-EMPTY-STORE, UnavailableError VHT-UNAVAILABLE-QUESTION while too many are being answered.
        """
        judged = self.admission.admit_question(permit, question, user_key)
        with self.open_questions.of(judged.question.user_kid), self._counting:
            return self._answer(judged)

    def _answer(self, judged: AdmittedQuestion) -> dict[str, Any]:
        try:
            return self._answered(judged)
        except VhtError as error:
            self.admission.refused(
                error,
                user_kid=judged.question.user_kid,
                permit_id=judged.permit.permit_id,
                request_digest=judged.digest,
                status_serial=judged.status_serial,
            )
            raise

    def answers(self) -> list[dict[str, Any]]:
        """What was asked and told, newest first, for the operator."""
        with self.database.read() as session:
            rows = session.scalars(select(FeasibilityRow).order_by(FeasibilityRow.answered_at.desc()).limit(200)).all()
            return [
                {
                    **self._as_answer(row),
                    **{name: getattr(row, name) for name in ("user", "title", "permit_id", "view")},
                }
                for row in rows
            ]

    def _as_answer(self, row: FeasibilityRow) -> dict[str, Any]:
        """``count`` is null where the noised count is below the smallest cell, as it was then and as it is now."""
        smallest = max(row.smallest_cell, self.settings.smallest_cell)
        return {
            "count": row.count if row.count is not None and row.count >= smallest else None,
            "smallest_cell": smallest,
            "code": None,
            "epsilon": row.epsilon,
            "delta": row.delta,
            "standard_deviation": row.noise_multiplier,
            "answered_at": row.answered_at.isoformat(),
            "receipt": row.receipt,
        }

    # --- parts --------------------------------------------------------------------------------------------------

    def _answered(self, judged: AdmittedQuestion) -> dict[str, Any]:
        if not self.settings.feasibility_epsilon:
            raise RefusedError("this node answers no feasibility questions", code="VHT-REFUSED-FEASIBILITY")
        plan = compile_definition(judged.question.view)
        self.queries.steps.catch_up()
        scope = opened(judged.permit, self.admission.installed, plan.resource, self._maps())
        asked_digest = digest_of({"asks": judged.question.asks(self.admission.dataset_id), "opened": _facts(scope)})
        with self.database.read() as session:
            previous = session.scalars(
                select(FeasibilityRow).where(FeasibilityRow.asked == asked_digest).order_by(FeasibilityRow.id.desc())
            ).first()
            excluded = sorted(excluded_subjects(session, judged.permit))
        if previous is not None and self.clock() < previous.answered_at + STANDS:
            return {**self._as_answer(previous), "repeated": True}
        if judged.question.epsilon > self.settings.feasibility_epsilon:
            raise BudgetError(
                f"one feasibility question costs at most epsilon {self.settings.feasibility_epsilon:g} here",
                code="VHT-BUDGET-QUESTION",
                hint="ask for less epsilon: the answer has more noise",
            )
        generation = Store(self.store).current()
        if generation is None:
            raise CohortError("this node has ingested no data", code="VHT-COHORT-EMPTY-STORE")
        return {
            **self._as_answer(self._draw(judged, asked_digest, lambda: self._count(plan, scope, generation, excluded))),
            "repeated": False,
        }

    def _draw(self, judged: AdmittedQuestion, asked_digest: str, count_patients: Callable[[], int]) -> FeasibilityRow:
        delta = self.admission.ledger.delta
        count = Count(calibrate_gaussian(judged.question.epsilon, delta))
        user = next(
            data_user.name for data_user in judged.permit.data_users if data_user.kid == judged.question.user_kid
        )
        actor = Actor(user, "viewer", "signed-question")
        with self.queries.spending(LABEL, (count.event("all"),), actor, permit=judged.permit) as query:
            query.draw()
            noised = round(count.release(self._held(count_patients), self.noise()))
            released = noised if noised >= self.settings.smallest_cell else None
            return self._keep(judged, asked_digest, user, query.run.name, count.noise_multiplier, released)

    def _held(self, count_patients: Callable[[], int]) -> Private[PatientValues]:
        """What ``count_patients`` gives, or nobody where it fails or is late; at the same moment whatever it does."""
        ends = self.timer() + self.settings.feasibility_seconds
        patients: list[int] = []

        def work() -> None:
            with suppress(Exception):  # the kind of an error would tell of the data as the error does
                patients.append(count_patients())

        worker = threading.Thread(target=work, name="vht-feasibility", daemon=True)
        worker.start()
        worker.join(self.settings.feasibility_seconds)
        self.pause(max(0.0, ends - self.timer()))
        nothing = np.zeros(0)
        return Private(PatientValues(nothing, nothing.astype(np.int64), patients[0] if patients else 0))

    def _maps(self) -> CodeMaps:
        try:
            return read_code_maps(self.code_maps)
        except InputError as error:
            log.warning("the code maps cannot be read", extra={"facts": {"cause": error.message}})
            raise UnavailableError(
                "this node's code maps cannot be read", code="VHT-UNAVAILABLE-CODE-MAP", hint="its operator finds why"
            ) from None

    def _count(self, plan: Plan, scope: PermitScope, generation: Generation, excluded: list[str]) -> int:
        limit = TimeLimit(self.settings.feasibility_seconds * VIEW_SHARE)
        with locked([generation.folder.resolve()]) as connection, limit.on(connection):
            for macro in (_NO_STOP, *plan.macros):
                connection.execute(macro)
            sql = count_query(plan, generation, scope.over(connection, generation))
            excluded_persons = sorted(persons_of(generation, excluded))
            [[patients]] = connection.execute(sql, {"excluded": excluded_persons}).fetchall()
        return int(patients)

    def _keep(
        self,
        judged: AdmittedQuestion,
        asked_digest: str,
        user: str,
        query: str,
        noise_multiplier: float,
        count: int | None,
    ) -> FeasibilityRow:
        """The answer is in the log, then in the database; it is told after that."""
        question, permit = judged.question, judged.permit
        row = FeasibilityRow(
            asked=asked_digest,
            query_id=query,
            permit_id=permit.permit_id,
            user=user,
            title=question.title,
            view=question.view,
            epsilon=question.epsilon,
            delta=self.admission.ledger.delta,
            noise_multiplier=noise_multiplier,
            smallest_cell=self.settings.smallest_cell,
            count=count,
            answered_at=self.clock(),
        )
        answered = FeasibilityAnswered(
            query=query,
            dataset=self.admission.dataset_id,
            question_digest=judged.digest,
            view_sha256=digest_of(question.view),
            user_kid=question.user_kid,
            status_serial=judged.status_serial,
            epsilon=question.epsilon,
            noise_multiplier=noise_multiplier,
            smallest_cell=self.settings.smallest_cell,
            count=count,
            code=None,
        )
        with self.queries.steps.step() as step:
            step.session.add(row)
            step.session.flush()
            entry = step.record(answered, permit_id=permit.permit_id)
            row.receipt = self.admission.evidence.receipt(entry)
        log.info("feasibility answered", extra={"facts": {"query": query, "permit": permit.permit_id}})
        return row


def _facts(scope: PermitScope) -> dict[str, Any]:
    """What distinguishes two permits' answers to one question; nothing of the data."""
    facts = {"rows": scope.rows, "birth_date": scope.birth_date, "gender": scope.gender}
    return {**facts, "code_maps": scope.maps.digests}
