"""Who has a record, and of which day: patients of the store who did not opt out, adult and alive on that day.

By the profile's index a record's day is a public landmark, or one that the patient's own course sets (``onset``). A
patient is a person (``connector.fhir.persons``), however many ids they have, and so is whoever opted out. Of a date
that is a year or a month alone, an outcome, a death and the last day recorded are as early as they may be; what must
have come before a record's day is as late as it may be.
"""

# ruff: noqa: S608 - SQL is put together from our own paths, quoted, and from constants; values are parameters.

from collections.abc import Callable
from datetime import date

import duckdb

from connector.fhir.disclosure_control import OLDEST_AGE
from connector.fhir.persons import persons_of
from connector.fhir.store import Generation
from connector.views.cohort_specification import CohortSpecification
from connector.views.inclusion import make_included
from connector.views.port_codings import PortCodings, among
from connector.views.sql import Plan
from connector.views.store_tables import Relations, last_possible, stored
from vht_federate.components.contract import Port, Profile
from vht_federate.errors import ViewError

__all__ = ["ADULT_YEARS", "FINAL", "make_records"]

ADULT_YEARS = 18
FINAL = "('final', 'amended', 'corrected')"
OUTCOME_VERIFICATION = "('refuted', 'entered-in-error')"


def make_records(
    connection: duckdb.DuckDBPyConnection,
    generation: Generation,
    specification: CohortSpecification,
    *,
    relations: Relations | None = None,
    inclusion: Plan | None = None,
    codings: PortCodings = PortCodings(),
) -> None:
    """Create table ``record`` (record, person, subject, bucket, landmark, age, male, outcome), patient-major.

    Age in completed years. Birth date and sex are read only where a permitted column needs them; without the
    birth date nobody can be known to be an adult, so the rule of age does not apply. With a horizon, a patient
    whose outcome came before a landmark has no record there. Where the index is the onset, the dates of all that is
    recorded are read, whatever is permitted, because they set a control's day. ``relations`` are read, by default
    the store's tables as they lie; ``codings`` say which codes are the outcome's. ``inclusion``
    (``compile_inclusion``) belongs to a profile that has a cohort view, and to no other: ViewError VHT-VIEW-COHORT.
    """
    component, profile = specification.component, specification.profile
    if (profile.cohort is None) != (inclusion is None):
        raise ViewError("the inclusion criteria are not those of the profile", code="VHT-VIEW-COHORT")
    relations = relations or stored(generation)
    sources = {component.port(name).source.type for name in specification.read_columns()}
    born = "birth_date" if "age" in sources else "NULL::DATE"
    sex = "gender" if "sex" in sources else "NULL::VARCHAR"
    connection.execute(
        f"""CREATE TEMP TABLE person AS
        SELECT subject, bucket, {born} AS born, {sex} AS sex, deceased, deceased_at
        FROM {relations("patient")}
        WHERE active AND subject NOT IN (SELECT unnest(?::VARCHAR[]))""",
        [sorted(persons_of(generation, specification.excluded_subjects))],
    )
    _name_people(connection, specification.pseudonym)
    _make_events(connection, relations, component.outcome(specification.profile_name), codings)
    if profile.index == "onset":
        _index_by_onset(connection, relations)
    else:
        _index_by_landmark(connection, profile)
    if inclusion is not None:
        make_included(connection, generation, inclusion)
        connection.execute("DELETE FROM indexed WHERE subject NOT IN (SELECT subject FROM included)")
    connection.execute(_RECORDS, {"horizon": profile.horizon_years, "adult": ADULT_YEARS, "ages": "age" in sources})


_RECORDS = f"""
CREATE TEMP TABLE record AS
WITH eligible AS (
    SELECT subject, pseudonym, bucket, landmark, sex,
        date_part('year', landmark) - date_part('year', born)
            - (strftime(landmark, '%m%d') < strftime(born, '%m%d'))::INTEGER AS age,
        CASE WHEN $horizon = 0 THEN first_event IS NOT NULL
            ELSE first_event IS NOT NULL AND first_event < horizon::TIMESTAMPTZ END AS outcome
    FROM person JOIN named USING (subject) JOIN indexed USING (subject) LEFT JOIN event USING (subject)
    WHERE (NOT deceased OR deceased_at >= landmark::TIMESTAMPTZ)
        AND ($horizon = 0 OR first_event IS NULL OR first_event >= landmark::TIMESTAMPTZ)
)
SELECT row_number() OVER (ORDER BY pseudonym, landmark) - 1 AS record,
    dense_rank() OVER (ORDER BY pseudonym) - 1 AS person,
    subject, bucket, landmark, CASE WHEN age > {OLDEST_AGE} THEN {OLDEST_AGE} ELSE age END AS age, sex, outcome
FROM eligible
WHERE NOT $ages OR age >= $adult
ORDER BY record
"""


def _name_people(connection: duckdb.DuckDBPyConnection, pseudonym: Callable[[str], str] | None) -> None:
    """Table ``named``: each person's subject and the name under which it is numbered."""
    subjects = [row[0] for row in connection.execute("SELECT DISTINCT subject FROM person").fetchall()]
    names = [pseudonym(subject) for subject in subjects] if pseudonym else subjects
    connection.execute(
        "CREATE TEMP TABLE named AS SELECT unnest(?::VARCHAR[]) AS subject, unnest(?::VARCHAR[]) AS pseudonym",
        [subjects, names],
    )


def _make_events(
    connection: duckdb.DuckDBPyConnection, relations: Relations, outcome: Port, codings: PortCodings
) -> None:
    is_outcome = among(codings.of(outcome.source), "", "condition")
    connection.execute(
        f"""CREATE TEMP TABLE event AS
        SELECT subject, min(onset) AS first_event FROM {relations("condition")}
        WHERE {is_outcome} AND coalesce(verification, 'confirmed') NOT IN {OUTCOME_VERIFICATION}
        GROUP BY subject"""
    )


def _index_by_landmark(connection: duckdb.DuckDBPyConnection, profile: Profile) -> None:
    """Table ``indexed`` (subject, landmark, horizon): everybody at every landmark."""
    landmarks = [(moment, _later(moment, profile.horizon_years)) for moment in profile.landmarks]
    connection.execute("CREATE TEMP TABLE landmark (landmark DATE, horizon DATE)")
    connection.executemany("INSERT INTO landmark VALUES (?, ?)", landmarks)
    connection.execute("CREATE TEMP TABLE indexed AS SELECT subject, landmark, horizon FROM person CROSS JOIN landmark")


# What is recorded after a death (its certificate) does not move a control's day beyond it. `least` passes over NULL.
_ONSET = """
CREATE TEMP TABLE indexed AS
WITH seen AS (SELECT subject, max(moment) AS last FROM ({recorded}) GROUP BY subject),
observed AS (SELECT subject, min({observed}) AS earliest FROM {observation} WHERE status IN {final} GROUP BY subject),
course AS (
    SELECT subject, earliest, NULL::DATE AS horizon,
        coalesce(first_event, least(last, deceased_at))::DATE AS landmark
    FROM person JOIN observed USING (subject) LEFT JOIN seen USING (subject) LEFT JOIN event USING (subject)
)
SELECT subject, landmark, horizon FROM course WHERE earliest < landmark::TIMESTAMPTZ
"""
_RECORDED = {
    "observation": "effective",
    "condition": "onset",
    "medication_request": "authored",
    "encounter": "greatest(started, ended)",
}


def _index_by_onset(connection: duckdb.DuckDBPyConnection, relations: Relations) -> None:
    """Table ``indexed``: each patient observed before it, at the first onset, or at the last day recorded."""
    recorded = " UNION ALL ".join(
        f"SELECT subject, {moment} AS moment FROM {relations(f'recorded_{table}')} "
        f"WHERE coalesce({'verification' if table == 'condition' else 'status'}, '') <> 'entered-in-error'"
        for table, moment in _RECORDED.items()
    )
    observation = relations("recorded_observation")
    observed = last_possible("effective")
    connection.execute(_ONSET.format(recorded=recorded, observed=observed, observation=observation, final=FINAL))


def _later(moment: date, years: int) -> date:
    """The same day ``years`` later; 29 February becomes 1 March."""
    try:
        return moment.replace(year=moment.year + years)
    except ValueError:
        return date(moment.year + years, 3, 1)
