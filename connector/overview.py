"""What the node's operator and its programs may read: visits, costs, intake. Public values and rounded counts only."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from connector.fhir.store import Store
from connector.governance.ledger import Ledger, loaded
from connector.governance.ledger_rows import known_permits
from connector.governance.visits import request_of
from connector.settings import NodeFiles, NodeSettings
from connector.store.database import Database
from connector.store.models import Draw, IngestRow, QueryRow, Reservation, VisitRow
from vht_federate.domain.permit import Permit
from vht_federate.errors import NotFoundError
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.privacy.accounts import Run
from vht_federate.privacy.ledger import Account
from vht_federate.signing.keys import unverified_claims

__all__ = ["Overview"]


@dataclass(frozen=True)
class Overview:
    """Reads the database of one node; writes nothing."""

    settings: NodeSettings
    files: NodeFiles
    database: Database

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(
            self.settings.epsilon_cap,
            self.settings.delta,
            dataset_epsilon_cap=self.settings.dataset_epsilon_cap,
            patients=self.patients,
        )

    def patients(self) -> int | None:
        """How many the store holds; None before the first intake."""
        generation = Store(self.files.fhir).current()
        return None if generation is None else generation.patients()

    def visits(self) -> list[dict[str, Any]]:
        """Newest first."""
        with self.database.read() as session:
            rows = session.scalars(select(VisitRow).order_by(VisitRow.created_at.desc(), VisitRow.id))
            return [self._described(session, row) for row in rows]

    def visit(self, visit_id: str) -> dict[str, Any]:
        """Raises NotFoundError."""
        with self.database.read() as session:
            row = session.get(VisitRow, visit_id)
            if row is None:
                raise NotFoundError("no such visit")
            request, permit = request_of(row), Permit.from_claims(unverified_claims(row.permit))
            return {
                **self._described(session, row),
                "permit": permit.claims(),
                "request": request.claims(),
                "receipt": row.receipt,
                "able": self._able(session, row, permit) if row.state == "requested" else None,
            }

    def budget(self) -> dict[str, Any]:
        """``{datasets: {id: account}, permits: {id: account}, patients: [line]}``.

        An account is ``{cap, delta, spent, reserved, …}``, as if one patient had been in every run: ``spent`` and
        ``if_spent`` are epsilon by population, ``reserved`` is what open visits may still add. A line says how many
        patients remain under a cap, each by the runs it was in; exactly, since the node's operators alone read it.
        """
        with self.database.read() as session:
            dataset_id = self.settings.dataset.id
            permits = {
                permit_id: permit
                for permit_id, permit in known_permits(session).items()
                if _touched(session, permit_id)
            }
            return {
                "patients": self._patients(session, permits.values()),
                "datasets": {dataset_id: _account(self.ledger.dataset_account(session, dataset_id))},
                "permits": {
                    permit_id: _account(self.ledger.permit_account(session, permit))
                    for permit_id, permit in permits.items()
                },
            }

    def _patients(self, session: Session, permits: Iterable[Permit]) -> list[dict[str, Any]]:
        nothing, lines = Run("-", self.settings.dataset.id, None), []
        for permit in (None, *permits):
            plan = replace(nothing, permit=permit.permit_id if permit else None)
            remaining = self.ledger.remaining(session, plan, permit)
            for cap in self.ledger.caps(permit, plan.dataset):
                if permit is None or cap.permit is not None:
                    about = {"cap": cap.name, "of": cap.permit or cap.dataset, "epsilon": cap.epsilon}
                    lines.append({**about, "delta": cap.delta, **asdict(remaining[cap.name])})
        return lines

    def _able(self, session: Session, row: VisitRow, permit: Permit) -> dict[str, int]:
        """Patients who could pay for the visit's plan, by the cap's name; ``patients`` are all."""
        plan = Run(row.id, row.dataset_id, row.permit_id, holds=request_of(row).plan.events())
        remaining = self.ledger.remaining(session, plan, permit)
        return {name: remainder.able for name, remainder in remaining.items()} | {
            "patients": remaining["patient"].patients
        }

    def ingests(self) -> list[dict[str, Any]]:
        """Newest first, in numbers of lines."""
        with self.database.read() as session:
            rows = session.scalars(select(IngestRow).order_by(IngestRow.id.desc()).limit(50))
            return [{"dataset": row.dataset_id, "at": row.at.isoformat(), **row.report} for row in rows]

    def newest_ingest(self) -> datetime | None:
        with self.database.read() as session:
            return session.scalars(select(IngestRow.at).order_by(IngestRow.id.desc()).limit(1)).first()

    def _described(self, session: Session, row: VisitRow) -> dict[str, Any]:
        request, permit = request_of(row), Permit.from_claims(unverified_claims(row.permit))
        user = next((user for user in permit.data_users if user.kid == row.user_kid), None)
        draws = session.scalars(select(Draw).where(Draw.visit_id == row.id).order_by(Draw.id)).all()
        spent = tuple(event for draw in draws for event in loaded(draw.events))
        return {
            "visit": row.id,
            "study_id": row.study_id,
            "title": request.title,
            "dataset": row.dataset_id,
            "permit_id": row.permit_id,
            "permit_expires_at": permit.expires_at.isoformat(),
            "user": user.name if user else row.user_kid,
            "purpose": request.purpose.value,
            "component": request.component.model_dump(mode="json"),
            "state": row.state,
            "code": row.code,
            "reason": row.reason,
            "operator": row.decided_by,
            "isolation": row.isolation,
            "created_at": row.created_at.isoformat(),
            "decided_at": row.decided_at.isoformat() if row.decided_at else None,
            "ended_at": row.ended_at.isoformat() if row.ended_at else None,
            "calls_planned": len(request.plan.calls()),
            "calls_begun": len(draws),
            "delta": request.plan.delta,
            "epsilon_planned": epsilon_by_population(request.plan.events(), request.plan.delta),
            "epsilon_spent": epsilon_by_population(spent, request.plan.delta),
            "reserved": _reserved(session, row.id),
            "left": {
                "answers": sum(draw.output_sha256 is not None for draw in draws),
                "bytes": sum(draw.output_bytes or 0 for draw in draws),
            },
            "rounds": [_round(draw) for draw in draws],
        }


def _round(draw: Draw) -> dict[str, Any]:
    return {
        "job": draw.job,
        "round": draw.round,
        "events": draw.events,
        "request_sha256": draw.request_sha256,
        "begun_at": draw.drawn_at.isoformat(),
        "output_sha256": draw.output_sha256,
        "output_bytes": draw.output_bytes,
        "released_at": draw.released_at.isoformat() if draw.released_at else None,
    }


def _reserved(session: Session, visit_id: str) -> bool:
    reservation = session.get(Reservation, visit_id)
    return reservation is not None and reservation.open


def _touched(session: Session, permit_id: str) -> bool:
    """Whether anything was drawn or reserved under the permit, in a visit or outside."""
    return any(
        session.scalars(select(key).where(permit == permit_id).limit(1)).first() is not None
        for key, permit in (
            (Draw.id, Draw.permit_id),
            (Reservation.visit_id, Reservation.permit_id),
            (QueryRow.id, QueryRow.permit_id),
        )
    )


def _account(account: Account) -> dict[str, Any]:
    spent, if_spent = account.epsilon_spent(), account.epsilon_if_spent()
    return {
        "cap": account.epsilon,
        "delta": account.delta,
        "spent": spent,
        "if_spent": if_spent,
        "reserved": {population: if_spent[population] - spent[population] for population in spent},
        "entries": len(account.spent),
    }
