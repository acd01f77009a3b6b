"""Which ports find something: one scan of the store per resource type, whatever the number of ports."""

from collections import defaultdict
from collections.abc import Sequence

import duckdb

from connector.fhir.codes import Measure
from connector.fhir.store import Generation
from connector.quality.survey_figures import Feature, UnitSeen
from connector.views.columns import REAL_CONDITION, REAL_REQUEST
from connector.views.eligible_patients import FINAL
from connector.views.port_codings import PortCodings
from connector.views.store_tables import last_possible, stored
from vht_federate.components.contract import Port

__all__ = ["EVER", "read_features"]

EVER = {
    "condition": ("condition", "onset", REAL_CONDITION),
    "medication": ("medication_request", "authored", REAL_REQUEST),
}
_SPELLED = """CASE w.type WHEN 'observation' THEN CASE WHEN o.number IS NOT NULL THEN o.unit END
    WHEN 'observation-code' THEN CASE WHEN o.value_system = w.value_system THEN o.value_code END
    ELSE o.truth::VARCHAR END"""
# A value stands once for each coding; a port that reads several of them reads it once.
_SEEN = """
SELECT w.port, o.code, {token} AS token, count(*), count(DISTINCT o.subject)
FROM {observation} o JOIN wanted w ON w.system = o.code_system AND w.code = o.code
WHERE {token} IS NOT NULL GROUP BY w.port, o.code, token ORDER BY w.port, o.code, count(*) DESC, token
"""
_HAD = """
INSERT INTO had
SELECT port, person FROM (
    SELECT w.port, o.subject, min({at}) AS earliest
    FROM {observation} o JOIN wanted w ON w.system = o.code_system AND w.code = o.code
        JOIN usable u ON u.port = w.port AND u.token = {token}
    WHERE o.status IN {final} GROUP BY w.port, o.subject
) JOIN lastly USING (subject) WHERE earliest < day
"""
_EVER = """
INSERT INTO had
SELECT port, person FROM (
    SELECT w.port, o.subject, min({at}) AS earliest
    FROM {table} o JOIN wanted w ON w.type = '{type}' AND w.system = o.system AND w.code = o.code
    WHERE {real} GROUP BY w.port, o.subject
) JOIN lastly USING (subject) WHERE earliest < day
"""
_EVER_VALUES = """
SELECT w.port, count(*) FROM {table} o JOIN wanted w ON w.type = '{type}' AND w.system = o.system AND w.code = o.code
WHERE {real} GROUP BY w.port
"""
_OF_PERSON = "INSERT INTO had SELECT DISTINCT {port}, person FROM record WHERE {known}"
_KNOWN = {"age": "age IS NOT NULL", "sex": "sex IN ('male', 'female')"}

Counts = dict[int, list[tuple[str, str, int, int]]]  # port: (code, unit or answer, values, patients)


def read_features(
    connection: duckdb.DuckDBPyConnection, generation: Generation, ports: Sequence[Port], codings: PortCodings
) -> list[Feature]:
    """What each of ``ports`` finds before the records' days in table ``record``, by the codes that ``codings`` say.

    Also makes table ``had`` (port, person).
    """
    connection.execute("CREATE TEMP TABLE had (port INTEGER, person BIGINT)")
    connection.execute(
        "CREATE TEMP TABLE lastly AS SELECT subject, person, max(landmark)::TIMESTAMPTZ AS day FROM record "
        "GROUP BY subject, person"
    )
    _want(connection, ports, codings)
    observation = stored(generation)("observation")
    tokens: Counts = defaultdict(list)
    for place, *row in connection.execute(_SEEN.format(token=_SPELLED, observation=observation)).fetchall():
        tokens[place].append(tuple(row))
    connection.execute("CREATE TEMP TABLE usable (port INTEGER, token VARCHAR)")
    usable = sorted({(place, token) for place, rows in tokens.items() for _, token, *_ in rows
                     if _use(ports[place], token)[0] != "unusable"})  # fmt: skip
    if usable:
        connection.execute(
            "INSERT INTO usable SELECT unnest(?::INTEGER[]), unnest(?::VARCHAR[])",
            list(map(list, zip(*usable, strict=True))),
        )
    connection.execute(
        _HAD.format(token=_SPELLED, observation=observation, at=last_possible("o.effective"), final=FINAL)
    )
    ever = _read_ever(connection, generation)
    for place, port in enumerate(ports):
        if port.source.type in _KNOWN:
            connection.execute(_OF_PERSON.format(port=place, known=_KNOWN[port.source.type]))
    had = dict(connection.execute("SELECT port, count(DISTINCT person) FROM had GROUP BY port").fetchall())
    return [_feature(place, port, tokens, ever, had, codings) for place, port in enumerate(ports)]


def _want(connection: duckdb.DuckDBPyConnection, ports: Sequence[Port], codings: PortCodings) -> None:
    """Table ``wanted``: which codes each port reads, by its place."""
    rows = []
    for place, port in enumerate(ports):
        source = port.source
        rows += [(place, source.type, system, code, source.system) for system, code in codings.of(source)]
    connection.execute(
        "CREATE TEMP TABLE wanted (port INTEGER, type VARCHAR, system VARCHAR, code VARCHAR, value_system VARCHAR)"
    )
    if rows:
        connection.executemany("INSERT INTO wanted VALUES (?, ?, ?, ?, ?)", rows)


def _read_ever(connection: duckdb.DuckDBPyConnection, generation: Generation) -> dict[int, int]:
    counts: dict[int, int] = {}
    for kind, (table, moment, real) in EVER.items():
        at = last_possible(f"o.{moment}")
        parameters = {"table": stored(generation)(table), "at": at, "real": real, "type": kind}
        connection.execute(_EVER.format(**parameters))
        counts |= dict(connection.execute(_EVER_VALUES.format(**parameters)).fetchall())
    return counts


def _use(port: Port, token: str) -> tuple[str, str | None]:
    """What becomes of a unit or an answer: as-it-is, converted, read-as or unusable; and into what."""
    if port.source.type == "observation-boolean":
        return "as-it-is", None
    if port.source.type == "observation-code":
        known = port.categories if port.kind == "category" else (*port.source.values, *port.source.negatives)
        return ("as-it-is" if token in known else "unusable"), None
    turn = Measure.of_port(port).turn(token)
    if turn is None:
        return "unusable", None
    if turn.read_as is not None:
        return "read-as", turn.read_as
    return ("as-it-is", None) if token == port.unit else ("converted", port.unit)


def _feature(
    place: int, port: Port, tokens: Counts, ever: dict[int, int], had: dict[int, int], codings: PortCodings
) -> Feature:
    units = tuple(
        UnitSeen(code, token, values, patients, *_use(port, token)) for code, token, values, patients in tokens[place]
    )
    values = sum(unit.values for unit in units) + ever.get(place, 0)
    absent = "no" if port.source.type in EVER else "missing"
    kind, source = port.source.type, port.source
    of_person = had.get(place, 0) if kind in _KNOWN else values
    mapped = codings.described(source)
    found = of_person, had.get(place, 0)
    return Feature(port.name, port.title, kind, port.unit, source.codes, absent, *found, units, mapped)
