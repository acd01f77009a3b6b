"""The store as FHIR R4 JSON again: of each resource the elements that were kept, and no others.

``id`` is the stored key, references are made of stored keys, and ``meta.lastUpdated`` is when this node took the
resource in. What intake reduced stays reduced: times are instants in UTC (a year or a month alone is one again; stores
of an older make have the last moment that it may mean), a partial ``birthDate`` is its middle, ``onset``, ``effective``
and ``abatement`` are dateTimes whichever choice was sent, a condition known by its ``recordedDate`` alone has that as
its onset, an integer is a Quantity of unit ``1``, and a medication that was referred to is a CodeableConcept. A person
(``connector.fhir.persons``) is one Patient, whom all that is theirs refers to; nothing tells of links. DuckDB writes
the JSON; Python sees it only where a caller asks for single resources.
"""

# ruff: noqa: S608 - SQL is put together from our own paths, quoted, and from constants; values are parameters.

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import orjson

from connector.duckdb_lockdown import locked, quoted
from connector.fhir.condition_status import CLINICAL_SYSTEM, VERIFICATION_SYSTEM
from connector.fhir.observation_values import UCUM
from connector.fhir.persons import joined
from connector.fhir.resources import TABLES
from connector.fhir.store import Generation, table_name
from vht_federate.errors import InputError

__all__ = ["ACT_CODE", "keyed", "relation", "rendered", "resources", "slices", "stored_rows", "taken_in"]

BATCH = 2_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SLICE = 50_000  # resources whose JSON one query groups and sorts
_SQL_TYPES = {
    "uint8": "UTINYINT",
    "int16": "SMALLINT",
    "float64": "DOUBLE",
    "bool": "BOOLEAN",
    "string": "VARCHAR",
    "date32": "DATE",
    "timestamp": "TIMESTAMPTZ",
}
# The code is what an Observation is about: where a store of an older make did not keep it, that is said.
_MASKED = (
    '"code":{"extension":[{"url":"http://hl7.org/fhir/StructureDefinition/data-absent-reason","valueCode":"masked"}]}'
)
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"


def taken_in(generation: Generation, table: str) -> list[datetime]:
    """When each part of ``table`` was taken in, in UTC."""
    return [_EPOCH + timedelta(microseconds=part.stat().st_mtime_ns // 1000) for part in generation.parts(table)]


def relation(generation: Generation, resource_type: str, *, rows: str = "true") -> str:
    """DuckDB SQL of a relation (subject VARCHAR, resource JSON), one row per stored resource.

    ``rows`` is a condition on the stored rows (``resource``, ``subject``, ``taken`` and the columns of the type's
    table), which may hold parameters: what it leaves out is as if it had never been stored. Raises InputError
    VHT-INPUT-FHIR-TYPE for a type that is not stored.
    """
    return f"SELECT subject, resource FROM ({keyed(generation, resource_type, rows=rows)})"


def keyed(generation: Generation, resource_type: str, *, rows: str = "true") -> str:
    """The same with two more columns: id VARCHAR, the resource's own, and taken TIMESTAMPTZ."""
    writer = _WRITERS.get(resource_type)
    if writer is None:
        raise InputError("resources of this type are not kept", code="VHT-INPUT-FHIR-TYPE")
    key = "subject" if resource_type == "Patient" else "resource"
    grouped = _grouped(generation, resource_type, rows)
    return f"SELECT {key} AS id, subject, taken, CAST({writer} AS JSON) AS resource FROM ({grouped})"


def rendered(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: dict[str, Any] | None = None
) -> Iterator[tuple[str, bytes]]:
    """(subject, JSON) of each row that ``sql``, made of a ``relation``, gives. Memory holds one batch."""
    cursor = connection.execute(sql, parameters or {})
    while batch := cursor.fetchmany(BATCH):
        yield from ((subject, text.encode()) for subject, text in batch)


def resources(
    generation: Generation, resource_type: str, *, name: Callable[[str], str] | None = None
) -> Iterator[dict[str, Any]]:
    """The stored resources in order of id; ``name`` renames every stored key (ids and references), and then the
    order is that of the stored ids."""
    with locked([generation.folder.resolve()]) as connection:
        for low, high in slices(generation.counts().get(resource_type, 0)):
            key = "subject" if resource_type == "Patient" else "resource"
            sql = keyed(generation, resource_type, rows=f"{key} >= '{low}' AND {key} < '{high}'")
            for _, text in rendered(connection, f"SELECT subject, resource FROM ({sql}) ORDER BY id"):
                resource: dict[str, Any] = orjson.loads(text)
                yield _renamed(resource, name) if name else resource


def slices(count: int) -> Iterator[tuple[str, str]]:
    """Ranges of keys, which are uniform hexadecimal digits, so that each holds about ``SLICE`` of ``count``."""
    number = max(1, count // SLICE)
    digits = len(f"{number:x}") + 1
    bounds = [f"{16**digits * index // number:0{digits}x}" for index in range(number)]
    yield from zip(bounds, [*bounds[1:], "g"], strict=True)


def _renamed(resource: dict[str, Any], name: Callable[[str], str]) -> dict[str, Any]:
    resource["id"] = name(resource["id"])
    for member in ("subject", "encounter"):
        if member in resource:
            kind, _, key = resource[member]["reference"].partition("/")
            resource[member] = {"reference": f"{kind}/{name(key)}"}
    return resource


# --- rows -----------------------------------------------------------------------------------------------------------


def stored_rows(generation: Generation, resource_type: str) -> str:
    """Every stored row, with ``taken`` and ``nth``, its place in its part, and the person's key as ``subject``; of
    Patients one row for each person. Older parts lack columns: those are NULL."""
    table = table_name(resource_type)
    columns = (("resource", "string"), ("subject", "string"), *TABLES[resource_type])
    typed = ", ".join(f"NULL::{_SQL_TYPES[kind]} AS {name}" for name, kind in columns)
    empty = f"SELECT {typed}, NULL::TIMESTAMPTZ AS taken, NULL::BIGINT AS nth WHERE false"
    parts = [
        f"SELECT * EXCLUDE (file_row_number), TIMESTAMPTZ '{moment.isoformat()}' AS taken, file_row_number AS nth "
        f"FROM read_parquet({quoted(part)}, file_row_number = true)"
        for part, moment in zip(generation.parts(table), taken_in(generation, table), strict=True)
    ]
    rows = " UNION ALL BY NAME ".join([empty, *parts])
    return joined(generation, table, rows, further=", max(r.taken) AS taken, min(r.nth) AS nth")


def _grouped(generation: Generation, resource_type: str, rows: str) -> str:
    """One row per resource; ``cells`` lists what differs between its rows, in the order in which it was read."""
    chosen = f"SELECT * FROM ({stored_rows(generation, resource_type)}) WHERE {rows}"
    cells = _CELLS.get(resource_type)
    if cells is None:
        return chosen
    shared = [name for name, _ in TABLES[resource_type] if name not in cells]
    shared_columns = ", ".join(f"any_value({name}) AS {name}" for name in ("subject", "taken", *shared))
    cell_fields = ", ".join(f"'{name}': {name}" for name in ("nth", *cells))
    # Nearly all resources have one row, and a list of one needs no order.
    return (
        f"SELECT * REPLACE (CASE WHEN len(cells) = 1 THEN cells ELSE list_sort(cells) END AS cells) FROM ("
        f"SELECT resource, {shared_columns}, list({{{cell_fields}}}) AS cells FROM ({chosen}) GROUP BY resource)"
    )


_CELLS = {
    "Observation": ("part", "code_system", "code", "number", "unit", "truth", "value_system", "value_code"),
    "Condition": ("system", "code"),
    "MedicationRequest": ("system", "code"),
    "Encounter": ("type_system", "type_code", "reason_system", "reason_code"),
}

# --- JSON -----------------------------------------------------------------------------------------------------------
# ``concat`` leaves out what is NULL, and ``||`` is NULL where one side is: so an element without a value is absent.


def _text(sql: str) -> str:
    return f"CAST(to_json({sql}) AS VARCHAR)"


def _instant(sql: str) -> str:
    return f"""'"' || replace(CAST(make_timestamp(epoch_us({sql})) AS VARCHAR), ' ', 'T') || 'Z"'"""


def _moment(name: str) -> str:
    """A dateTime: a year or a month alone where the bounds are those of one. Older parts have one bound."""
    year, month = (f"strftime({name}, '{form}')" for form in ("%Y", "%Y-%m"))
    partial = f"CASE WHEN month({name}) = month({name}_until) THEN {month} ELSE {year} END"
    return f"""CASE WHEN {name}_until IS NULL THEN {_instant(name)} ELSE '"' || {partial} || '"' END"""


def _coding(system: str, code: str) -> str:
    member = f"""'"code":' || {_text(code)} || '}}'"""
    with_system = f"""'{{"system":' || {_text(system)} || ',' || {member}"""
    return f"""CASE WHEN {system} IS NULL THEN '{{' || {member} ELSE {with_system} END"""


def _codings(cells: str, system: str, code: str, cell: str) -> str:
    """The different codings in a list of cells, joined; of a single cell, at once."""
    all_codings = f"list_transform({cells}, lambda c: {_coding(f'c.{system}', f'c.{code}')})"
    present_codings = f"list_filter({all_codings}, lambda x: x IS NOT NULL)"
    single = _coding(f"{cell}.{system}", f"{cell}.{code}")
    return (
        f"CASE WHEN len({cells}) = 1 THEN {single} ELSE nullif(array_to_string(list_transform([{present_codings}], "
        "lambda l: list_filter(l, lambda x, i: list_position(l, x) = i))[1], ','), '') END"
    )


def _said(system: str, code: str) -> str:
    """A CodeableConcept of one code of a system that FHIR binds the element to."""
    return f"""'{{"coding":[{{"system":"{system}","code":' || {_text(code)} || '}}]}}'"""


def _concepts(system: str, code: str) -> str:
    """A CodeableConcept for each different coding of the cells: which of them are synonyms was not kept."""
    coding = _coding(f"c.{system}", f"c.{code}")
    concepts = f"""list_transform(cells, lambda c: '{{"coding":[' || {coding} || ']}}')"""
    present_concepts = f"list_filter({concepts}, lambda x: x IS NOT NULL)"
    return (
        f"nullif(array_to_string(list_transform([{present_concepts}], "
        "lambda l: list_filter(l, lambda x, i: list_position(l, x) = i))[1], ','), '')"
    )


def _head(kind: str, key: str) -> str:
    return (
        f"""'{{"resourceType":"{kind}","id":"' || {key} || '","meta":{{"lastUpdated":' || {_instant("taken")} || '}}'"""
    )


_SUBJECT = """',"subject":{"reference":"Patient/' || subject || '"}'"""
_ENCOUNTER = """',"encounter":{"reference":"Encounter/' || encounter || '"}'"""
_STATUS = """',"status":' || """ + _text("status")


def _about(cells: str) -> str:
    """``code`` and ``value[x]`` of the cells of one part of an Observation."""
    cell = f"{cells}[1]"
    unit = (
        f"""concat(',"unit":' || {_text(f"{cell}.unit")} || ',"system":"{UCUM}","code":' || {_text(f"{cell}.unit")})"""
    )
    quantity = f"""',"valueQuantity":{{"value":' || {_text(f"{cell}.number")} || {unit} || '}}'"""
    truth = f"""',"valueBoolean":' || CAST({cell}.truth AS VARCHAR)"""
    coded = (
        f"""',"valueCodeableConcept":{{"coding":[' || {_codings(cells, "value_system", "value_code", cell)} || ']}}'"""
    )
    code = f"""'"code":{{"coding":[' || {_codings(cells, "code_system", "code", cell)} || ']}}'"""
    return f"""concat(coalesce({code}, '{_MASKED}'), CASE WHEN isfinite({cell}.number) THEN {quantity}
        WHEN {cell}.truth IS NOT NULL THEN {truth} WHEN {cell}.value_code IS NOT NULL THEN {coded} END)"""


def _observation() -> str:
    whole = "list_filter(cells, lambda c: c.part = 0)"
    parts = "list_sort(list_distinct(list_transform(list_filter(cells, lambda c: c.part > 0), lambda c: c.part)))"
    part = f"list_transform([list_filter(cells, lambda c: c.part = p)], lambda q: '{{' || {_about('q')} || '}}')[1]"
    components = f"nullif(array_to_string(list_transform({parts}, lambda p: {part}), ','), '')"
    about = f"""CASE WHEN len(cells) = 1 AND cells[1].part = 0 THEN ',' || {_about("cells")}
        ELSE list_transform([{whole}], lambda w: ',' || {_about("w")})[1]
            || coalesce(',"component":[' || {components} || ']', '') END"""
    return f"""concat({_head("Observation", "resource")}, {_STATUS}, {about}, {_SUBJECT}, {_ENCOUNTER},
        ',"effectiveDateTime":' || {_moment("effective")}, '}}')"""


_WRITERS = {
    "Patient": f"""concat({_head("Patient", "subject")}, CASE WHEN NOT active THEN ',"active":false' END,
        ',"gender":' || {_text("gender")}, ',"birthDate":"' || CAST(birth_date AS VARCHAR) || '"',
        CASE WHEN deceased_at IS NOT NULL THEN ',"deceasedDateTime":' || {_moment("deceased_at")}
            WHEN deceased THEN ',"deceasedBoolean":true' END, '}}')""",
    "Observation": _observation(),
    "Condition": f"""concat({_head("Condition", "resource")},
        ',"clinicalStatus":' || {_said(CLINICAL_SYSTEM, "clinical")},
        ',"verificationStatus":' || {_said(VERIFICATION_SYSTEM, "verification")},
        ',"code":{{"coding":[' || {_codings("cells", "system", "code", "cells[1]")} || ']}}', {_SUBJECT}, {_ENCOUNTER},
        ',"onsetDateTime":' || {_moment("onset")}, ',"abatementDateTime":' || {_moment("abated")},
        ',"recordedDate":' || {_moment("recorded")}, '}}')""",
    "MedicationRequest": f"""concat({_head("MedicationRequest", "resource")}, {_STATUS},
        ',"intent":' || {_text("intent")}, CASE WHEN prohibited THEN ',"doNotPerform":true' END,
        ',"medicationCodeableConcept":{{"coding":[' || {_codings("cells", "system", "code", "cells[1]")} || ']}}',
        {_SUBJECT}, {_ENCOUNTER}, ',"authoredOn":' || {_moment("authored")}, '}}')""",
    "Encounter": f"""concat({_head("Encounter", "resource")}, {_STATUS},
        ',"class":{{"system":' || {_text(f"coalesce(class_system, '{ACT_CODE}')")}
            || ',"code":' || {_text("class_code")} || '}}',
        ',"type":[' || {_concepts("type_system", "type_code")} || ']', {_SUBJECT},
        ',"reasonCode":[' || {_concepts("reason_system", "reason_code")} || ']',
        CASE WHEN coalesce(started, ended) IS NOT NULL THEN concat(',"period":{{', '"start":' || {_moment("started")},
            CASE WHEN started IS NOT NULL AND ended IS NOT NULL THEN ',' END,
            '"end":' || {_moment("ended")}, '}}') END, '}}')""",
}
