"""Who has a record: patients of the store who did not opt out, at each landmark where they are adult and alive."""

# ruff: noqa: S608 - SQL is put together from our own paths, quoted, and from constants; values are parameters.

from collections.abc import Callable, Iterable
from datetime import date

import duckdb

from connector.fhir.engine import quoted
from connector.fhir.store import Generation
from vht_federate.components.contract import Component

__all__ = ["ADULT_YEARS", "make_records", "parts"]

ADULT_YEARS = 18
OUTCOME_VERIFICATION = "('refuted', 'entered-in-error')"


def parts(generation: Generation, table: str) -> str:
    """A table function over every part of ``table``."""
    return f"read_parquet([{', '.join(map(quoted, generation.parts(table)))}])"


def make_records(
    connection: duckdb.DuckDBPyConnection,
    generation: Generation,
    component: Component,
    profile: str,
    *,
    columns: frozenset[str],
    excluded_subjects: Iterable[str],
    pseudonym: Callable[[str], str] | None = None,
) -> None:
    """Create table ``record`` (record, person, subject, bucket, landmark, age, male, outcome), patient-major.

    Patients are numbered in the order of their ``pseudonym``, by default of their subject.

    Age in completed years. Birth date and sex are read only where a port in ``columns`` needs them; without the
    birth date nobody can be known to be an adult, so the rule of age does not apply. With a horizon, a patient
    whose outcome came before a landmark has no record there.
    """
    sources = {component.port(name).source.type for name in columns}
    born = "birth_date" if "age" in sources else "NULL::DATE"
    sex = "gender" if "sex" in sources else "NULL::VARCHAR"
    connection.execute(
        f"""CREATE TEMP TABLE person AS
        SELECT subject, bucket, {born} AS born, {sex} AS sex, deceased, deceased_at
        FROM {parts(generation, "patient")}
        WHERE active AND subject NOT IN (SELECT unnest(?::VARCHAR[]))""",
        [sorted(excluded_subjects)],
    )
    _name_people(connection, pseudonym)
    _make_events(connection, generation, component, profile)
    chosen = component.profile(profile)
    landmarks = [(moment, _later(moment, chosen.horizon_years)) for moment in chosen.landmarks]
    connection.execute("CREATE TEMP TABLE landmark (landmark DATE, horizon DATE)")
    connection.executemany("INSERT INTO landmark VALUES (?, ?)", landmarks)
    connection.execute(_RECORDS, {"horizon": chosen.horizon_years, "adult": ADULT_YEARS, "ages": "age" in sources})


_RECORDS = """
CREATE TEMP TABLE record AS
WITH eligible AS (
    SELECT subject, pseudonym, bucket, landmark, sex,
        date_part('year', landmark) - date_part('year', born)
            - (strftime(landmark, '%m%d') < strftime(born, '%m%d'))::INTEGER AS age,
        CASE WHEN $horizon = 0 THEN first_event IS NOT NULL
            ELSE first_event IS NOT NULL AND first_event < horizon::TIMESTAMPTZ END AS outcome
    FROM person JOIN named USING (subject) LEFT JOIN event USING (subject) CROSS JOIN landmark
    WHERE (NOT deceased OR deceased_at >= landmark::TIMESTAMPTZ)
        AND ($horizon = 0 OR first_event IS NULL OR first_event >= landmark::TIMESTAMPTZ)
)
SELECT row_number() OVER (ORDER BY pseudonym, landmark) - 1 AS record,
    dense_rank() OVER (ORDER BY pseudonym) - 1 AS person,
    subject, bucket, landmark, age, sex, outcome
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
    connection: duckdb.DuckDBPyConnection, generation: Generation, component: Component, profile: str
) -> None:
    source = component.outcome(profile).source
    connection.execute(
        f"""CREATE TEMP TABLE event AS
        SELECT subject, min(onset) AS first_event FROM {parts(generation, "condition")}
        WHERE system = ? AND list_contains(?::VARCHAR[], code)
            AND coalesce(verification, 'confirmed') NOT IN {OUTCOME_VERIFICATION}
        GROUP BY subject""",
        [source.system, list(source.codes)],
    )


def _later(moment: date, years: int) -> date:
    """The same day ``years`` later; 29 February becomes 1 March."""
    try:
        return moment.replace(year=moment.year + years)
    except ValueError:
        return date(moment.year + years, 3, 1)
