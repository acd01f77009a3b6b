"""The survey of one component and profile at one node: features, losses, units, reasons, time span."""

# ruff: noqa: S608 - SQL is put together from our own paths, quoted, and from constants; values are parameters.

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb

from connector.duckdb_lockdown import locked, quoted
from connector.fhir.codes import CodeMaps, read_code_maps
from connector.fhir.quarantine_reasons import reason
from connector.fhir.store import Generation, Store
from connector.quality.port_coverage import EVER, read_features
from connector.quality.survey_figures import CountDisclosure, Course, Feature, Holding, Loss
from connector.quality.unfilled_ports import UnfilledPort, held_by_table, unfilled_ports
from connector.views.cohort_specification import CohortSpecification
from connector.views.eligible_patients import ADULT_YEARS, make_records
from connector.views.inclusion import compile_inclusion
from connector.views.port_codings import read_port_codings
from connector.views.store_tables import stored
from vht_federate.components.contract import Component, Port, Profile
from vht_federate.errors import CohortError

__all__ = ["LOSSES", "Survey", "survey"]

MEMORY = "1GB"
LOSSES = {
    "inactive": "not active, or replaced by a patient whom nobody can know",
    "opted-out": "opted out of secondary use",
    "not-included": "outside the profile's inclusion criteria",
    "no-birth-date": "no birth date, so nobody knows that they are adult",
    "dead": "died before the first day that counts",
    "not-observed": "nothing was measured before the day that counts",
    "outcome-before": "had the outcome before the day that counts",
    "under-age": f"under {ADULT_YEARS} on the last day that counts",
    "other": "each of the days that count is ruled out for another reason",
}
HELD = {
    "Observation": ("observation", "effective"),
    "Condition": ("condition", "onset"),
    "MedicationRequest": ("medication_request", "authored"),
    "Encounter": ("encounter", "started"),
}
_LOSSES = """
SELECT CASE
        WHEN NOT p.active THEN 'inactive'
        WHEN NOT EXISTS (FROM person o WHERE o.subject = p.subject) THEN 'opted-out'
        WHEN NOT EXISTS (FROM included c WHERE c.subject = p.subject) THEN 'not-included'
        WHEN $ages AND p.birth_date IS NULL THEN 'no-birth-date'
        WHEN i.subject IS NULL THEN 'not-observed'
        WHEN p.deceased AND coalesce(p.deceased_at < i.first::TIMESTAMPTZ, true) THEN 'dead'
        WHEN $horizon > 0 AND e.first_event < i.first::TIMESTAMPTZ THEN 'outcome-before'
        WHEN $ages AND p.birth_date + to_years($adult) > i.last THEN 'under-age'
        ELSE 'other' END AS why, count(*)
FROM {patient} p
    LEFT JOIN (
        SELECT subject, min(landmark) AS first, max(landmark) AS last FROM indexed GROUP BY subject) i USING (subject)
    LEFT JOIN event e USING (subject)
WHERE p.subject NOT IN (SELECT subject FROM record) GROUP BY why
"""
_UNOBSERVED = """
SELECT count(DISTINCT person) FROM record r JOIN (
    SELECT subject, max(moment) AS last FROM ({recorded}) GROUP BY subject) USING (subject)
    JOIN person USING (subject)
WHERE NOT outcome AND NOT deceased AND last < (landmark + to_years($horizon))::TIMESTAMPTZ
"""
_MISSING = """
SELECT {wanted} - found AS lacks, count(*) FROM (
    SELECT person, count(DISTINCT port) FILTER (port IN (SELECT unnest($places::INTEGER[]))) AS found
    FROM (SELECT DISTINCT person FROM record) LEFT JOIN had USING (person) GROUP BY person
) GROUP BY lacks ORDER BY lacks
"""
_HOLDING = """
SELECT coalesce(sum(n), 0), count(*), min(first), max(last), coalesce(quantile_disc(n, 0.5), 0),
    coalesce(quantile_disc(n, 0.9), 0), coalesce(max(n), 0)
FROM (SELECT subject, count(DISTINCT resource) AS n, min({moment}) AS first, max({moment}) AS last
    FROM {table} GROUP BY subject)
"""


@dataclass(frozen=True)
class Survey:
    """What ``component`` with ``profile`` finds in generation ``generation`` of a store of ``store_patients``."""

    component: str
    version: str
    profile: str
    index: str
    days: tuple[str, ...]
    horizon_years: int
    generation: int
    store_patients: int
    features: tuple[Feature, ...]
    losses: tuple[Loss, ...]
    course: Course
    quarantine: Mapping[tuple[str, str, str], int]  # kind, reason, element: entries
    holdings: tuple[Holding, ...]
    unfilled: tuple[UnfilledPort, ...] = ()

    def to_dict(self, shown: CountDisclosure) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in ("component", "version", "profile", "index", "horizon_years")}
        cohort = self.course.patients
        return {
            **fields,
            "days": list(self.days),
            "generation": self.generation,
            "smallest_cell": shown.smallest_cell,
            "store_patients": shown.count(self.store_patients),
            "cohort": self.course.to_dict(shown),
            "losses": [loss.to_dict(shown) for loss in self.losses],
            "features": [feature.to_dict(shown, cohort) for feature in self.features],
            "quarantine": [
                {"kind": kind, "reason": why, "path": path, "entries": shown.count(count),
                 "what": reason(why).says, "do": reason(why).do}
                for (kind, why, path), count in self.quarantine.items()
            ],
            "holdings": [holding.to_dict(shown) for holding in self.holdings],
            "unfilled": [asdict(port) for port in self.unfilled] if shown.exact else None,
        }  # fmt: skip


def survey(
    store_dir: Path,
    component: Component,
    profile: str,
    *,
    excluded_subjects: Collection[str],
    cohort_view: Mapping[str, Any] | None = None,
    maps: CodeMaps | None = None,
) -> Survey:
    """Read the store as a cohort of ``profile`` would, with every column permitted and nothing written.

    ``cohort_view`` is the ViewDefinition that the profile names as its inclusion criteria, ``maps`` are the code maps
    in force, by default those that ship. Raises ViewError for the view, InputError VHT-INPUT-PROFILE, CohortError
    VHT-COHORT-EMPTY-STORE before the first ingest.
    """
    inclusion = None if cohort_view is None else compile_inclusion(cohort_view)
    chosen = component.profile(profile)
    generation = Store(store_dir).current()
    if generation is None:
        raise CohortError("this node has ingested no data", code="VHT-COHORT-EMPTY-STORE", hint="vht node ingest")
    maps = maps or read_code_maps()
    specification = CohortSpecification.of_every_column(component, profile, excluded_subjects=excluded_subjects)
    sources = [component.port(name).source for name in component.columns(profile)]
    with (
        tempfile.TemporaryDirectory(dir=store_dir, prefix="survey-") as spill,
        locked([generation.folder.resolve()], spill=Path(spill), memory=MEMORY) as connection,
    ):
        codings = read_port_codings(connection, generation, sources, maps)
        make_records(connection, generation, specification, inclusion=inclusion, codings=codings)
        if inclusion is None:
            connection.execute("CREATE TEMP TABLE included AS SELECT subject FROM person")
        features = read_features(connection, generation, component.inputs(profile), codings)
        losses = _losses(connection, generation, component, chosen)
        course = _course(connection, generation, component.inputs(profile), chosen)
        holdings = tuple(_holding(connection, generation, kind) for kind in HELD)
        quarantine = _quarantine(connection, generation)
        unfilled = unfilled_ports(component, profile, held_by_table(connection, generation), maps)
        [[patients]] = connection.execute(f"SELECT count(*) FROM {stored(generation)('patient')}").fetchall()
    return Survey(
        component=component.name,
        version=component.version,
        profile=profile,
        index=chosen.index,
        days=tuple(day.isoformat() for day in chosen.landmarks),
        horizon_years=chosen.horizon_years,
        generation=generation.number,
        store_patients=patients,
        features=tuple(features),
        losses=losses,
        course=course,
        quarantine=quarantine,
        holdings=holdings,
        unfilled=unfilled,
    )


def _losses(
    connection: duckdb.DuckDBPyConnection, generation: Generation, component: Component, profile: Profile
) -> tuple[Loss, ...]:
    ages = "age" in {component.port(name).source.type for name in (*profile.inputs, profile.outcome)}
    sql = _LOSSES.format(patient=stored(generation)("patient"))
    parameters = {"ages": ages, "horizon": profile.horizon_years, "adult": ADULT_YEARS}
    patients_by_reason = dict(connection.execute(sql, parameters).fetchall())
    return tuple(
        Loss(why, says, patients_by_reason[why]) for why, says in LOSSES.items() if patients_by_reason.get(why)
    )


def _course(
    connection: duckdb.DuckDBPyConnection, generation: Generation, inputs: Sequence[Port], profile: Profile
) -> Course:
    required = [place for place, port in enumerate(inputs) if port.source.type not in EVER]
    [[records, patients, outcomes]] = connection.execute(
        "SELECT count(*), count(DISTINCT person), count(DISTINCT person) FILTER (outcome) FROM record"
    ).fetchall()
    missing = connection.execute(_MISSING.format(wanted=len(required)), {"places": required}).fetchall()
    unobserved = 0
    if profile.horizon_years:
        recorded = " UNION ALL ".join(
            f"SELECT subject, {moment} AS moment FROM {stored(generation)(table)}" for table, moment in HELD.values()
        )
        sql = _UNOBSERVED.format(recorded=recorded)
        [[unobserved]] = connection.execute(sql, {"horizon": profile.horizon_years}).fetchall()
    return Course(patients, records, outcomes, unobserved, dict(missing))


def _holding(connection: duckdb.DuckDBPyConnection, generation: Generation, kind: str) -> Holding:
    table, moment = HELD[kind]
    [row] = connection.execute(_HOLDING.format(table=stored(generation)(table), moment=moment)).fetchall()
    resources, patients, first, last, median, ninth, most = row
    return Holding(kind, int(resources), patients, first, last, float(median), float(ninth), int(most))


def _quarantine(connection: duckdb.DuckDBPyConnection, generation: Generation) -> dict[tuple[str, str, str], int]:
    path = generation.folder / "quarantine.jsonl"
    if not path.exists() or not path.stat().st_size:
        return {}
    columns = "{kind: 'VARCHAR', reason: 'VARCHAR', path: 'VARCHAR'}"
    rows = connection.execute(
        f"SELECT kind, reason, path, count(*) AS n FROM read_json({quoted(path.resolve())}, "
        f"format = 'newline_delimited', columns = {columns}) GROUP BY ALL ORDER BY n DESC, kind, reason, path"
    ).fetchall()
    return {(kind, why, place): count for kind, why, place, count in rows}
