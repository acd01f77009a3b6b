"""One permit's view of the store: who and what it shows, under which names, on which days.

A ``PermitView`` belongs to one generation of the store, to the permit's content, and to the opt-outs in force for it;
it is made when it is first needed and kept while all stay. Names and shifted days are the permit's own, so searches
speak of those, too. A person whom several Patient records are of (``connector.fhir.persons``) is one patient, under the
name and the shift of the record that stands; a record that was replaced is no resource of its own.
"""

# ruff: noqa: S608 - SQL is put together from our own conditions and keys.

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from connector.duckdb_lockdown import locked, quoted
from connector.fhir.codes import read_code_maps
from connector.fhir.persons import persons_of
from connector.fhir.rendering import keyed, rendered, slices, stored_rows, taken_in
from connector.fhir.resources import TABLES
from connector.fhir.store import Generation, Store, table_name
from connector.governance.deidentification import Deidentifier
from connector.governance.installed_components import InstalledComponents
from connector.governance.opt_outs import excluded_subjects
from connector.governance.permit_scope import PermitScope, permit_scope
from connector.governance.pseudonyms import permit_key
from connector.store.database import Database
from connector.views.sql.limits import TimeLimit, over_time
from vht_federate.domain.permit import Permit
from vht_federate.errors import CohortError, NotFoundError, UnavailableError, ViewError

__all__ = ["PermitView", "PermitViews", "in_order", "interrupted_after"]

KEPT = 4
Resource = dict[str, Any]


@contextmanager
def interrupted_after(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Raises UnavailableError VHT-UNAVAILABLE-DEADLINE where what is done within takes longer."""
    limit = TimeLimit(seconds)
    try:
        with limit.on(connection):
            yield
    except (duckdb.InterruptException, ViewError) as error:
        if isinstance(error, ViewError) and error.code != over_time().code:
            raise
        raise UnavailableError(
            "this took longer than one request may", code="VHT-UNAVAILABLE-DEADLINE", hint="ask for less at once"
        ) from error


def in_order(key: str) -> str:
    """SQL of the permit's own order, by table ``person`` and the stored ``key``. The order of stored keys would be the
    same under every permit, and so would tell whoever holds two which pseudonyms are one patient's (Article 66)."""
    return f"name, md5(name || {key})"


@dataclass(frozen=True)
class PermitView:
    """``visible_patients``: (subject, name, shift in microseconds) of each. ``taken``: when the newest of its data was
    taken in, so that what comes later is later than that."""

    generation: Generation
    scope: PermitScope
    deidentifier: Deidentifier
    visible_patients: pa.Table
    taken: datetime

    @contextmanager
    def open(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A locked database that sees the generation, with table ``person``."""
        with locked([self.generation.folder.resolve()]) as connection:
            connection.register("people", self.visible_patients)
            connection.execute("CREATE TEMP TABLE person AS FROM people")
            connection.unregister("people")
            yield connection

    def shown(self, resource_type: str) -> str:
        """SQL of the stored rows that may be read, with the patient's name and shift."""
        rows = stored_rows(self.generation, resource_type)
        return f"SELECT * FROM ({rows}) JOIN person USING (subject) WHERE {self.scope.rows[resource_type]}"

    def tell(self, text: bytes) -> Resource | None:
        """A rendered resource as the permit may see it. When it was taken in is not told: it is a true date."""
        resource = self.deidentifier.resource(orjson.loads(text))
        if resource is None:
            return None
        for name in self.scope.withheld(resource["resourceType"]):
            resource.pop(name, None)
        return resource

    def everything(
        self,
        connection: duckdb.DuckDBPyConnection,
        resource_type: str,
        *,
        names: frozenset[str] | None = None,
    ) -> Iterator[Resource]:
        """All that is shown of a type, in the permit's own order; of ``names`` alone, by the permit's names."""
        condition = f" AND name IN ({', '.join(map(quoted, sorted(names))) or 'NULL'})" if names is not None else ""
        for low, high in slices(self.generation.counts().get(resource_type, 0)):
            patients = f"SELECT subject FROM person WHERE name >= '{low}' AND name < '{high}'{condition}"
            yield from self._deidentified(connection, resource_type, f"subject IN ({patients})")

    def chosen(self, connection: duckdb.DuckDBPyConnection, resource_type: str) -> Iterator[Resource]:
        """What table ``page`` (key) names, in the permit's own order."""
        key = "subject" if resource_type == "Patient" else "resource"
        yield from self._deidentified(connection, resource_type, f"{key} IN (SELECT key FROM page)")

    def _deidentified(
        self, connection: duckdb.DuckDBPyConnection, resource_type: str, condition: str
    ) -> Iterator[Resource]:
        rows = f"{self.scope.rows[resource_type]} AND {condition}"
        stored = keyed(self.generation, resource_type, rows=rows)
        sql = f"SELECT subject, resource FROM ({stored}) JOIN person USING (subject) ORDER BY {in_order('id')}"
        for _, text in rendered(connection, sql):
            if (resource := self.tell(text)) is not None:
                yield resource


@dataclass
class PermitViews:
    """Makes the permits' views, and keeps the last few."""

    store_dir: Path
    database: Database
    installed: InstalledComponents
    clock: Callable[[], datetime]
    code_maps: Path  # the hospital's own
    _kept: dict[tuple[object, ...], tuple[frozenset[str], PermitView]] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def view_for(self, permit: Permit, *, generation: int | None = None) -> PermitView:
        """The view of ``permit`` over the store as it is, or as it was at ``generation`` while that lasts; whoever is
        not there any more is not in an old one either.

        Raises CohortError VHT-COHORT-EMPTY-STORE, VHT-COHORT-TOO-SMALL; ComponentError VHT-COMPONENT-NOT-INSTALLED;
        PermitError VHT-PERMIT-ERASED; InputError VHT-INPUT-CODE-MAP; NotFoundError VHT-INPUT-GONE for a generation that
        is gone.
        """
        current = self._current()
        requested = self._generation(current, generation)
        with self.database.write() as session:
            key = permit_key(session, permit.permit_id, self.clock())
            excluded = frozenset(excluded_subjects(session, permit))
        today = self.clock().date()
        maps = read_code_maps(self.code_maps)
        state = requested.number, current.number, today.isoformat()
        cache_key = _content(permit), *state, *maps.digests.values()
        with self._guard:
            cached = self._kept.get(cache_key)
        if cached is not None and cached[0] == excluded:
            return cached[1]
        scope = _over(requested, permit_scope(permit, self.installed, maps))
        generations = {requested, current}
        absent = set().union(*(persons_of(generation, excluded) for generation in generations))
        subjects = sorted(set.intersection(*map(_subjects, generations)) - absent)
        permit_view = _build_view(requested, scope, Deidentifier(key, now=today, codes=scope.codes), subjects)
        if permit_view.visible_patients.num_rows < permit.minimum_cohort:
            raise CohortError("this node has fewer patients than the permit's minimum", code="VHT-COHORT-TOO-SMALL")
        with self._guard:
            self._kept[cache_key] = excluded, permit_view
            while len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return permit_view

    def _current(self) -> Generation:
        current = Store(self.store_dir).current()
        if current is None:
            raise CohortError("this node has ingested no data", code="VHT-COHORT-EMPTY-STORE")
        return current

    def _generation(self, current: Generation, number: int | None) -> Generation:
        if number is None or number == current.number:
            return current
        folder = current.folder.with_name(f"{number:06d}")
        if number > current.number or not folder.is_dir():
            raise NotFoundError(
                "this page is of a state of the store that is gone", code="VHT-INPUT-GONE", hint="search again"
            )
        return Generation(folder)


def _content(permit: Permit) -> str:
    """SHA-256 of all that a permit says: one of the same id may say something else."""
    return hashlib.sha256(orjson.dumps(permit.claims(), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _over(generation: Generation, scope: PermitScope) -> PermitScope:
    with locked([generation.folder.resolve()]) as connection:
        return scope.over(connection, generation)


def _subjects(generation: Generation) -> set[str]:
    """Keys of the persons who are active."""
    with locked([generation.folder.resolve()]) as connection:
        sql = f"SELECT DISTINCT subject FROM ({stored_rows(generation, 'Patient')}) WHERE active"
        return {row[0] for row in connection.execute(sql).fetchall()}


def _build_view(
    generation: Generation, scope: PermitScope, deidentifier: Deidentifier, subjects: list[str]
) -> PermitView:
    microsecond = timedelta(microseconds=1)
    columns = {
        "subject": pa.array(subjects, pa.string()),
        "name": pa.array([deidentifier.patient(subject) for subject in subjects], pa.string()),
        "shift": pa.array([deidentifier.shift(subject) // microsecond for subject in subjects], pa.int64()),
    }
    times = [time for kind in TABLES for time in taken_in(generation, table_name(kind))]
    return PermitView(generation, scope, deidentifier, pa.table(columns), max(times))
