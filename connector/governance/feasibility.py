"""Feasibility: how many patients here meet a cohort definition, told with noise that the ledger paid for.

Order: the permit and the question are judged; the view is compiled, which reads no data; the budget is reserved and
drawn; only then the data are read, and the answer is in the evidence log before anybody hears of it. Whatever happens
to the view in the data is paid for, and where it fails, that is its answer. The same question again, by whomever the
permit allows, is told the same answer for ``STANDS``: asking often averages nothing away.

One patient more or less moves the count by one at most: a row of the view is of its resource's own patient. A view in
which one patient's data stop the query would tell about that patient alone, so where a view elsewhere stops (more than
one value, a walk too deep), here the row's cell is empty.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from sqlalchemy import select

from connector.fhir.engine import locked
from connector.fhir.rendering import relation
from connector.fhir.store import Generation, Store
from connector.governance.actors import Actor
from connector.governance.judge import Judge, Questioned
from connector.governance.optouts import excluded_subjects
from connector.governance.queries import Queries
from connector.settings import NodeSettings
from connector.store.database import Database
from connector.store.models import FeasibilityRow
from connector.views.people import parts
from connector.views.sql.engine import query_error
from connector.views.sql.limits import TimeLimit
from connector.views.sql.plan import Plan, compile_view
from vht_federate.domain.permit import Permit
from vht_federate.errors import BudgetError, CohortError, RefusedError, UnavailableError, VhtError, ViewError
from vht_federate.evidence.canonical import digest_of
from vht_federate.privacy.accounting import calibrate_gaussian
from vht_federate.privacy.noise import NoiseSource, SecureNoise
from vht_federate.privacy.release import Private
from vht_federate.privacy.statistics import Count, PatientValues

__all__ = ["ANSWERED", "STANDS", "Feasibility"]

log = logging.getLogger("vht.node.feasibility")
ANSWERED = "feasibility.answered"
LABEL = "feasibility"
STANDS = timedelta(days=30)
SECONDS = 60.0
PATIENCE_S = 30.0  # for the question before: waiting requests are not without number
OWN_PATIENT = {"Patient": {"getResourceKey()"}}
OF_SUBJECT = {"subject.getReferenceKey(Patient)", "subject.getReferenceKey()"}
_COUNT = """
SELECT count(DISTINCT v.patient) FROM ({rows}) v
JOIN {patient} p ON p.subject = v.patient
WHERE p.active AND NOT list_contains($excluded::VARCHAR[], p.subject)
"""
# In place of DuckDB's own: what would stop the query leaves a cell empty.
_NO_STOP = "CREATE TEMP MACRO error(words) AS NULL"


@dataclass
class Feasibility:
    """Answers for the dataset of ``judge``, within ``feasibility_epsilon`` of the node's settings (0: none)."""

    judge: Judge
    queries: Queries
    database: Database
    store: Path
    settings: NodeSettings
    clock: Callable[[], datetime]
    noise: Callable[[], NoiseSource] = SecureNoise
    seconds: float = SECONDS
    _one: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def answer(self, permit: str, question: str, user_key: dict[str, Any]) -> dict[str, Any]:
        """The count with noise, or that it is below the smallest cell.

        Raises what the judge refuses with, ViewError for the view, BudgetError VHT-BUDGET-CAP, VHT-BUDGET-PERMIT or
        VHT-BUDGET-QUESTION, RefusedError VHT-REFUSED-FEASIBILITY, CohortError VHT-COHORT-EMPTY-STORE, UnavailableError
        VHT-UNAVAILABLE-QUESTION while others are answered.
        """
        judged = self.judge.judge_question(permit, question, user_key)
        if not self._one.acquire(timeout=PATIENCE_S):
            raise UnavailableError("other questions are being answered", code="VHT-UNAVAILABLE-QUESTION", hint="later")
        try:
            return self._answered(judged)
        except VhtError as error:
            self.judge.refused(
                error,
                permit_id=judged.permit.permit_id,
                request_digest=judged.digest,
                status_serial=judged.status_serial,
            )
            raise
        finally:
            self._one.release()

    def answers(self) -> list[dict[str, Any]]:
        """What was asked and told, newest first, for the operator."""
        with self.database.read() as session:
            rows = session.scalars(select(FeasibilityRow).order_by(FeasibilityRow.answered_at.desc()).limit(200)).all()
            return [
                {**self._told(row), **{name: getattr(row, name) for name in ("user", "title", "permit_id", "view")}}
                for row in rows
            ]

    def _told(self, row: FeasibilityRow) -> dict[str, Any]:
        """``count`` is null where the noised count is below the smallest cell, as it was then and as it is now."""
        smallest = max(row.smallest_cell, self.settings.smallest_cell)
        return {
            "count": row.count if row.count is not None and row.count >= smallest else None,
            "smallest_cell": smallest,
            "code": row.code,
            "epsilon": row.epsilon,
            "delta": row.delta,
            "standard_deviation": row.noise_multiplier,
            "answered_at": row.answered_at.isoformat(),
            "receipt": row.receipt,
        }

    # --- parts --------------------------------------------------------------------------------------------------

    def _answered(self, judged: Questioned) -> dict[str, Any]:
        if not self.settings.feasibility_epsilon:
            raise RefusedError("this node answers no feasibility questions", code="VHT-REFUSED-FEASIBILITY")
        asked = judged.question.asks(self.judge.dataset_id)
        with self.database.read() as session:
            same = session.scalars(
                select(FeasibilityRow).where(FeasibilityRow.asked == asked).order_by(FeasibilityRow.id.desc())
            ).first()
        if same is not None and self.clock() < same.answered_at + STANDS:
            return {**self._told(same), "repeated": True}
        if judged.question.epsilon > self.settings.feasibility_epsilon:
            raise BudgetError(
                f"one feasibility question costs at most epsilon {self.settings.feasibility_epsilon:g} here",
                code="VHT-BUDGET-QUESTION",
                hint="ask for less epsilon: the answer has more noise",
            )
        plan = _compiled(judged.question.view)
        generation = Store(self.store).current()
        if generation is None:
            raise CohortError("this node has ingested no data", code="VHT-COHORT-EMPTY-STORE")
        sql = _sql(plan, generation)
        return {**self._told(self._draw(judged, asked, plan, sql, generation)), "repeated": False}

    def _draw(self, judged: Questioned, asked: str, plan: Plan, sql: str, generation: Generation) -> FeasibilityRow:
        delta = self.judge.ledger.delta
        count = Count(calibrate_gaussian(judged.question.epsilon, delta))
        user = next(one.name for one in judged.permit.data_users if one.kid == judged.question.user_kid)
        actor = Actor(user, "viewer", "signed-question")
        with self.queries.spending(LABEL, (count.event("all"),), actor, permit=judged.permit) as query:
            query.draw()
            code, told = None, None
            try:
                held = self._count(judged.permit, plan, sql, generation)
                noised = round(count.release(held, self.noise()))
                told = noised if noised >= self.settings.smallest_cell else None
            except VhtError as error:
                code = error.code
            return self._keep(judged, asked, user, query.run.name, count.noise_multiplier, told, code)

    def _count(self, permit: Permit, plan: Plan, sql: str, generation: Generation) -> Private[PatientValues]:
        with self.database.read() as session:
            excluded = sorted(excluded_subjects(session, permit))
        with locked([generation.folder.resolve()]) as connection, TimeLimit(self.seconds).on(connection):
            try:
                for macro in (_NO_STOP, *plan.macros):
                    connection.execute(macro)
                [[patients]] = connection.execute(sql, {"excluded": excluded}).fetchall()
            except duckdb.Error as error:
                raise query_error(error) from None
        nothing = np.zeros(0)
        return Private(PatientValues(nothing, nothing.astype(np.int64), int(patients)))

    def _keep(
        self,
        judged: Questioned,
        asked: str,
        user: str,
        query: str,
        noise_multiplier: float,
        count: int | None,
        code: str | None,
    ) -> FeasibilityRow:
        """The answer is in the log, then in the database; it is told after that."""
        question, permit = judged.question, judged.permit
        row = FeasibilityRow(
            asked=asked,
            query_id=query,
            permit_id=permit.permit_id,
            user=user,
            title=question.title,
            view=question.view,
            epsilon=question.epsilon,
            delta=self.judge.ledger.delta,
            noise_multiplier=noise_multiplier,
            smallest_cell=self.settings.smallest_cell,
            count=count,
            code=code,
            answered_at=self.clock(),
        )
        body = {
            "query": query,
            "dataset": self.judge.dataset_id,
            "question_digest": judged.digest,
            "view_sha256": digest_of(question.view),
            "user_kid": question.user_kid,
            "status_serial": judged.status_serial,
            "epsilon": question.epsilon,
            "noise_multiplier": noise_multiplier,
            "smallest_cell": self.settings.smallest_cell,
            "count": count,
            "code": code,
        }
        with self.database.write() as session:
            session.add(row)
            session.flush()
            entry = self.judge.evidence.append(ANSWERED, body, permit_id=permit.permit_id)
            row.receipt = self.judge.evidence.receipt(entry)
        log.info("feasibility answered", extra={"facts": {"query": query, "permit": permit.permit_id, "code": code}})
        return row


def _compiled(view: dict[str, Any]) -> Plan:
    """Raises ViewError, VHT-VIEW-PATIENT where the view does not say whose its rows are."""
    plan = compile_view(view)
    paths = _paths(view.get("select"), "patient")
    allowed = OWN_PATIENT.get(plan.resource, OF_SUBJECT)
    if len(paths) != 1 or paths[0].replace(" ", "") not in allowed:
        raise ViewError(
            "a cohort definition has one column 'patient', which is the resource's own patient",
            code="VHT-VIEW-PATIENT",
            hint=f"its path is {' or '.join(sorted(allowed))}, outside of forEach",
        )
    return plan


def _paths(selects: Any, name: str) -> list[str]:
    """Of columns ``name`` that stand outside of any iteration, or anywhere else: then there is no such path."""
    found = []
    for one in selects if isinstance(selects, list) else ():
        found += [column["path"] for column in one.get("column", ()) if column.get("name") == name]
        found += _paths(one.get("select"), name)
        if found and {"forEach", "forEachOrNull", "repeat"} & one.keys():
            return ["(in an iteration)"]
    return found


def _sql(plan: Plan, generation: Generation) -> str:
    rows = plan.query_over(relation(generation, plan.resource))
    return _COUNT.format(rows=rows, patient=parts(generation, "patient"))
