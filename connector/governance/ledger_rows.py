"""Rows of the ledger as values of ``vht_federate.privacy``, and back: events, runs, participation."""

import secrets
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from connector.store.models import Draw, FhirClientRow, ParticipationRow, QueryRow, Reservation, VisitRow
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.permit import Permit
from vht_federate.errors import BudgetError
from vht_federate.privacy.accounts import Run
from vht_federate.privacy.participation import Group, Participation
from vht_federate.signing.keys import unverified_claims

__all__ = ["ParticipationStore", "dumped", "known_permits", "ledger_version", "loaded", "runs_of"]

ONLY = 1


def dumped(events: Iterable[PrivacyEvent]) -> list[dict[str, Any]]:
    return [event.model_dump(mode="json") for event in events]


def loaded(events: Iterable[Mapping[str, Any]]) -> tuple[PrivacyEvent, ...]:
    return tuple(_event(tuple(event.items())) for event in events)


@lru_cache(maxsize=4096)
def _event(fields: tuple[tuple[str, Any], ...]) -> PrivacyEvent:
    """A ledger holds few kinds of events, many times each; one that it does not know is a refusal, never a zero."""
    try:
        return PrivacyEvent.model_validate(dict(fields))
    except ValidationError as error:
        raise BudgetError(
            "the ledger holds an event that this version cannot account for", code="VHT-BUDGET-EVENT"
        ) from error


def runs_of(session: Session, **scope: str) -> dict[str, Run]:
    """Every run that drew or holds anything, by name: of all, or of one ``dataset_id`` or ``permit_id``."""
    drew: dict[str, list[PrivacyEvent]] = defaultdict(list)
    about: dict[str, tuple[str, str | None]] = {}
    for draw in session.scalars(select(Draw).filter_by(**scope).order_by(Draw.id)):
        about[draw.visit_id] = draw.dataset_id, draw.permit_id
        drew[draw.visit_id].extend(loaded(draw.events))
    holds: dict[str, tuple[PrivacyEvent, ...]] = {}
    for row in session.scalars(select(Reservation).filter_by(**scope, open=True).order_by(Reservation.reserved_at)):
        about[row.visit_id] = row.dataset_id, row.permit_id
        holds[row.visit_id] = tuple(_left(loaded(row.events), drew[row.visit_id]))
    for query in session.scalars(select(QueryRow).filter_by(**scope).order_by(QueryRow.reserved_at)):
        if query.state == "released":
            continue
        about[query.id] = query.dataset_id, query.permit_id
        if query.state == "drawn":
            drew[query.id].extend(loaded(query.events))
        else:
            holds[query.id] = loaded(query.events)
    return {name: Run(name, *about[name], drew=tuple(drew[name]), holds=holds.get(name, ())) for name in about}


def ledger_version(session: Session) -> tuple[object, ...]:
    """Differs after every change: rows are added, never removed, and each goes from open to settled once."""
    draws = session.scalar(select(func.count(Draw.id)))
    reservations = session.execute(select(func.count(), func.count(Reservation.released_at)).select_from(Reservation))
    queries = session.execute(select(func.count(), func.count(QueryRow.settled_at)).select_from(QueryRow))
    participation = session.scalars(select(ParticipationRow.version)).one_or_none()
    return draws, *reservations.one(), *queries.one(), participation


def known_permits(session: Session) -> dict[str, Permit]:
    """Permits that this node holds as they were signed: of visits, and of clients of the local FHIR API.

    Of a permit under which only questions were asked the node keeps the name, not the ceiling.
    """
    rows = (*session.scalars(select(FhirClientRow)), *session.scalars(select(VisitRow)))
    tokens = {row.permit_id: row.permit for row in rows}
    return {name: Permit.from_claims(unverified_claims(token)) for name, token in sorted(tokens.items())}


def _left(planned: Iterable[PrivacyEvent], drew: Iterable[PrivacyEvent]) -> Iterator[PrivacyEvent]:
    """The plan of a visit less its draws, in the plan's order."""
    drawn = Counter(drew)
    for event in planned:
        if drawn[event]:
            drawn[event] -= 1
        else:
            yield event


class ParticipationStore:
    """The node's participation; remembers the newest version it read, so that a warm question reads none of it."""

    def __init__(self) -> None:
        self._known: tuple[str, Participation] = ("", Participation.empty())

    def read(self, session: Session) -> Participation:
        version = session.scalars(select(ParticipationRow.version)).one_or_none()
        if version is None:
            return Participation.empty()
        known_version, participation = self._known
        if version != known_version:
            row = session.get_one(ParticipationRow, ONLY)
            participation = _participation(row)
            self._known = row.version, participation
        return participation

    def write(self, session: Session, held: Participation) -> None:
        """Replace what is held, in the session's transaction."""
        row = session.get(ParticipationRow, ONLY)
        if row is None:
            row = ParticipationRow(id=ONLY)
            session.add(row)
        row.version = secrets.token_hex(16)
        row.subjects = held.subjects.astype("<u8").tobytes()
        row.group_numbers = held.group.astype("<i4").tobytes()
        row.histories = [[group.population, list(group.runs)] for group in held.groups]
        session.flush()


def _participation(row: ParticipationRow) -> Participation:
    subjects = np.frombuffer(row.subjects, dtype="<u8").astype(np.uint64)
    group = np.frombuffer(row.group_numbers, dtype="<i4").astype(np.int32)
    groups = tuple(Group(population, tuple(runs)) for population, runs in row.histories)
    if len(subjects) != len(group) or (len(group) and not 0 <= group.min() <= group.max() < len(groups)):
        raise BudgetError("the ledger's record of who took part is damaged", code="VHT-BUDGET-PARTICIPATION")
    return Participation(subjects, group, groups)
