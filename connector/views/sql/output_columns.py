"""Columns of a view's rows: declared types against found types, collections, and the columns of a union."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from connector.fhir.r4.elements import EMPTY, is_type, kind
from connector.views.sql import building as sql
from connector.views.sql.definition import Column
from connector.views.sql.expressions import Case, Expression
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
    expression: Expression
    place: Place

    @property
    def json(self) -> bool:
        return kind(self.type) == "complex"


def output_column(
    column: Column, value: Value, compiler: PathCompiler, element_row: Expression | None = None
) -> OutputColumn:
    """A collection is NULL where ``element_row`` is false, and ``[]`` where it is empty otherwise.

    Raises: VHT-VIEW-TYPE where the declared type cannot hold the path's; VHT-VIEW-COMPLEX for an object whose type the
    view does not declare.
    """
    place = column.place
    declared = column.type
    if declared is not None and not is_type(declared):
        raise view_error("TYPE", place.member("type"), f"'{declared[:60]}' is no FHIR R4 type")
    if value.root:
        raise view_error("COMPLEX", place.member("path"), "a column is an element, not the resource")
    actual = (declared or "string") if value.type == EMPTY else value.type
    if kind(actual) == "complex":
        if declared != actual:
            hint = f'select its elements, or declare "type": "{actual}" to get JSON'
            raise view_error("COMPLEX", place.member("path"), f"a {actual} is not a primitive", hint=hint)
        if value.node is not None:
            value.node.whole = True
    final = _final_type(declared, actual, place)
    brackets = "[]" if column.collection else ""
    sql_type = _SQL_TYPES.get(kind(final), "VARCHAR") + brackets
    if value.type == EMPTY:
        nothing: Expression = sql.cast(sql.listing() if column.collection else sql.NULL, sql_type)
        if column.collection and element_row is not None:
            nothing = sql.case(element_row, nothing)
        return OutputColumn(column.name, final, column.collection, nothing, place)
    compiler.place = place.member("path")
    if column.collection:
        items = compiler.values(replace(value, expression=plain(value), node=None, fixed=False))
        expression: Expression = sql.call("coalesce", items, sql.listing())
        if element_row is not None:
            expression = sql.case(element_row, expression)
    else:
        expression = plain(compiler.single(value, 0))
    if kind(final) != kind(actual) or kind(final) == "complex":
        expression = sql.cast(expression, sql_type)
    return OutputColumn(column.name, final, column.collection, expression, place)


def _final_type(declared: str | None, actual: str, place: Place) -> str:
    if declared is None or declared == actual:
        return actual
    wanted, given = kind(declared), kind(actual)
    fits = wanted == given or (wanted, given) == ("decimal", "integer") or (wanted == "string" and given in _TEXTS)
    if not fits or "complex" in {wanted, given}:
        raise view_error("TYPE", place.member("type"), f"the path gives {actual}, not {declared}")
    return declared


_TEXTS = {"date", "time"}


def union_columns(branches: Sequence[Sequence[OutputColumn]], branch: Expression, place: Place) -> list[OutputColumn]:
    """One column per position, by branch. Raises: VHT-VIEW-UNION where names, order or types differ."""
    first = branches[0]
    for number, columns in enumerate(branches):
        if [column.name for column in columns] != [column.name for column in first]:
            raise view_error("UNION", place.item(number), "its columns differ from the first branch's")
        for column, other in zip(first, columns, strict=True):
            same = (kind(column.type), column.collection) == (kind(other.type), other.collection)
            if not same and not _numbers(column, other):
                raise view_error("UNION", other.place, f"'{column.name}' is {column.type} in the first branch")
    united = []
    for position, column in enumerate(first):
        alternatives = [columns[position] for columns in branches]
        cases: list[Expression] = []
        for number, alternative in enumerate(alternatives):
            cases += [sql.infix("=", branch, sql.number(number)), alternative.expression]
        widest = next((alternative for alternative in alternatives if kind(alternative.type) == "decimal"), column)
        united.append(replace(column, expression=Case(operands=tuple(cases)), type=widest.type))
    return united


def _numbers(column: OutputColumn, other: OutputColumn) -> bool:
    return column.collection == other.collection and {kind(column.type), kind(other.type)} <= {"integer", "decimal"}
