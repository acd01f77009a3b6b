"""A store that is read through views alone: its resources as FHIR JSON, and compiled views over them.

The slow way, which says what the fast one must give.
"""

# ruff: noqa: S608 - SQL is put together from compiled views and constants.

from collections.abc import Mapping
from typing import Any

import duckdb

from connector.fhir.rendering import relation
from connector.fhir.store import Generation
from connector.views.sql import compile_view
from connector.views.store_tables import Relations, stored

# A dateTime as a view gives it, in the store's two columns: a year or a month alone has a first and a last moment.
_MOMENT = """CASE length({0}) WHEN 4 THEN ({0} || '-01-01')::TIMESTAMPTZ WHEN 7 THEN ({0} || '-01')::TIMESTAMPTZ
    ELSE {0}::TIMESTAMPTZ END AS {0},
    CASE length({0}) WHEN 4 THEN ({0} || '-01-01')::TIMESTAMPTZ + INTERVAL 1 YEAR - INTERVAL 1 MICROSECOND
    WHEN 7 THEN ({0} || '-01')::TIMESTAMPTZ + INTERVAL 1 MONTH - INTERVAL 1 MICROSECOND END AS {0}_until"""
_TYPES = dict.fromkeys(("deceased_at", "effective", "onset", "authored", "started", "ended"), _MOMENT)
_TYPES |= {"birth_date": "{0}::DATE AS {0}", "prohibited": "coalesce({0}, false) AS {0}"}


def viewed(connection: duckdb.DuckDBPyConnection, generation: Generation, views: Mapping[str, Any]) -> Relations:
    """Relations of the views' rows, as tables in memory, with the columns of the store's tables."""
    known: set[str] = set()
    for name, view in views.items():
        plan = compile_view(view)
        for macro in set(plan.macros) - known:
            connection.execute(macro)
        known |= set(plan.macros)
        over = plan.query_over(relation(generation, view["resource"]))
        columns = [column.name for column in plan.columns]
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE viewed_{name} AS SELECT {', '.join(_cells(columns))} FROM ({over})"
        )
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE viewed_patient AS SELECT * EXCLUDE (active, replaced, dead),
            coalesce(active, true) AND NOT replaced AS active,
            coalesce(dead, false) OR deceased_at IS NOT NULL AS deceased
        FROM viewed_patient JOIN (
            SELECT subject, bucket, birth_date_partial FROM {stored(generation)("patient")}) USING (subject)"""
    )
    return lambda table: f"viewed_{table}"


def _cells(columns: list[str]) -> list[str]:
    return [_TYPES.get(name, "{0}").format(name) for name in columns]
