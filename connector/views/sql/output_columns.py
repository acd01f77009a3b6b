"""Columns of a view's rows: declared types against found types, collections, and the columns of a union."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from connector.views.sql.definition import Column
from connector.views.sql.elements import EMPTY, is_type, kind
from connector.views.sql.paths import PathCompiler
from connector.views.sql.values import Value, plain
from connector.views.sql.view_errors import Place, view_error

__all__ = ["OutputColumn", "output_column", "union_columns"]

_SQL_TYPES = {"boolean": "BOOLEAN", "integer": "BIGINT", "decimal": "DOUBLE", "complex": "VARCHAR"}


@dataclass(frozen=True)
class OutputColumn:
    """``type`` is the FHIR type of a value; ``collection`` makes it a list of them. A complex type comes as JSON."""

    name: str
    type: str
    collection: bool
    sql: str
    place: Place

    @property
    def json(self) -> bool:
        return kind(self.type) == "complex"


def output_column(column: Column, value: Value, compiler: PathCompiler) -> OutputColumn:
    """Raises: VHT-VIEW-TYPE where the declared type cannot hold the path's; VHT-VIEW-COMPLEX for an object whose type
    the view does not declare."""
    place = column.place
    declared = column.type
    if declared is not None and not is_type(declared):
        raise view_error("TYPE", place.member("type"), f"'{declared[:60]}' is no FHIR R4 type")
    if value.root:
        raise view_error("COMPLEX", place.member("path"), "a column is an element, not the resource")
    found = (declared or "string") if value.type == EMPTY else value.type
    if kind(found) == "complex":
        if declared != found:
            hint = f'select its elements, or declare "type": "{found}" to get JSON'
            raise view_error("COMPLEX", place.member("path"), f"a {found} is not a primitive", hint=hint)
        if value.node is not None:
            value.node.whole = True
    final = _final_type(declared, found, place)
    sql_type = _SQL_TYPES.get(kind(final), "VARCHAR")
    if value.type == EMPTY:
        sql = f"CAST({'[]' if column.collection else 'NULL'} AS {sql_type}{'[]' if column.collection else ''})"
        return OutputColumn(column.name, final, column.collection, sql, place)
    compiler.place = place.member("path")
    if column.collection:
        listed = compiler.listed(replace(value, sql=plain(value), node=None))
        sql = f"coalesce({listed}, [])"
    else:
        sql = plain(compiler.single(value, 0))
    if kind(final) != kind(found):
        sql = f"CAST({sql} AS {sql_type}{'[]' if column.collection else ''})"
    if kind(final) == "complex":
        sql = f"CAST({sql} AS VARCHAR{'[]' if column.collection else ''})"
    return OutputColumn(column.name, final, column.collection, sql, place)


def _final_type(declared: str | None, found: str, place: Place) -> str:
    if declared is None or declared == found:
        return found
    wanted, given = kind(declared), kind(found)
    fits = wanted == given or (wanted, given) == ("decimal", "integer") or (wanted == "string" and given in _TEXTS)
    if not fits or "complex" in {wanted, given}:
        raise view_error("TYPE", place.member("type"), f"the path gives {found}, not {declared}")
    return declared


_TEXTS = {"date", "time"}


def union_columns(branches: Sequence[Sequence[OutputColumn]], branch: str, place: Place) -> list[OutputColumn]:
    """One column per position, by branch. Raises: VHT-VIEW-UNION where names, order or types differ."""
    first = branches[0]
    for number, columns in enumerate(branches):
        if [column.name for column in columns] != [column.name for column in first]:
            raise view_error("UNION", place.item(number), "its columns differ from the first branch's")
        for one, other in zip(first, columns, strict=True):
            if (kind(one.type), one.collection) != (kind(other.type), other.collection) and not _numbers(one, other):
                raise view_error("UNION", other.place, f"'{one.name}' is {one.type} in the first branch")
    made = []
    for position, column in enumerate(first):
        cases = " ".join(f"WHEN {number} THEN {columns[position].sql}" for number, columns in enumerate(branches))
        widest = next((columns[position] for columns in branches if kind(columns[position].type) == "decimal"), column)
        made.append(replace(column, sql=f"CASE {branch} {cases} END", type=widest.type))
    return made


def _numbers(one: OutputColumn, other: OutputColumn) -> bool:
    return one.collection == other.collection and {kind(one.type), kind(other.type)} <= {"integer", "decimal"}
