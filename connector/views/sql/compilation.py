"""A view as one DuckDB query: one scan of the resource type, then a chain of stages that only ever unnest.

Every ``forEach`` is a stage that unnests its list; siblings multiply because stages follow each other. A ``unionAll``
is a stage that unnests the numbers of its branches; a stage inside a branch leaves the rows of the others alone by
unnesting ``[NULL]`` for them, and a column of the union is a CASE over the branch. So nothing is scanned or joined
twice, and rows stream. ``repeat`` is a correlated recursive query over JSON, in depth-first order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from connector.duckdb_lockdown import quoted
from connector.fhir.r4.elements import EMPTY
from connector.views.sql import building as sql
from connector.views.sql.definition import Iteration, Select, View, read_view
from connector.views.sql.expressions import Column, Expression, render
from connector.views.sql.macros import prelude
from connector.views.sql.output_columns import OutputColumn, output_column, union_columns
from connector.views.sql.paths import PathCompiler
from connector.views.sql.repeat import repeat_list
from connector.views.sql.schema import ReadNode, identifier
from connector.views.sql.values import NOTHING, Value
from connector.views.sql.view_errors import Place, view_error

__all__ = ["LINE_FAULT", "Plan", "compile_view"]

LINE_FAULT = "VHT-INPUT-FHIR-LINE"
MAX_SQL = 4_000_000
MACRO = 2_000  # characters, about what a comparison of dates unfolds to
_ONE_NULL = sql.listing(sql.NULL)


@dataclass(frozen=True)
class Scope:
    """Where paths start: ``focus`` is ``$this``; ``guard`` is the branch of a union, or always. ``element_row`` is
    false in the row that ``forEachOrNull`` gives where there is no element."""

    focus: Value
    row_index: Expression
    index_key: str = ""
    guard: Expression | None = None
    element_row: Expression | None = None

    def guarded(self, items: Expression) -> Expression:
        return items if self.guard is None else sql.case(self.guard, items, _ONE_NULL)


@dataclass(frozen=True)
class Plan:
    """A compiled view. ``macros`` run once on a connection; ``query(files)`` is the one statement of the view.

    ``query_over(relation)`` is the same over rows that are resources already: a SELECT with a column ``resource`` of
    JSON, each a resource of the view's type that fits FHIR.
    """

    resource: str
    columns: tuple[OutputColumn, ...]
    macros: tuple[str, ...]
    _elements: tuple[tuple[str, ReadNode], ...]
    _kept: str
    _rest: str
    _macro_calls: int

    def query(self, files: Sequence[str]) -> str:
        names = ", ".join(quoted(name) for name in files)
        members = {"resourceType": "VARCHAR"} | {name: node.duck_type() for name, node in self._elements}
        columns = ", ".join(f"{identifier(name)}: {quoted(type_)}" for name, type_ in members.items())
        return (
            f"WITH _s0 AS (SELECT * FROM read_json([{names}], format = 'newline_delimited', "  # noqa: S608
            f"columns = {{{columns}}})\n  WHERE CASE WHEN \"resourceType\" IS NULL THEN error('{LINE_FAULT}') "
            f'WHEN "resourceType" = {quoted(self.resource)} THEN {self._kept} ELSE false END){self._rest}'
        )

    def query_over(self, relation: str) -> str:
        root = ReadNode(self.resource, fields={"resourceType": ReadNode("code"), **dict(self._elements)})
        opened = f"SELECT UNNEST(from_json(resource, {quoted(root.structure())})) FROM ({relation})"  # noqa: S608
        return f"WITH _s0 AS (SELECT * FROM ({opened})\n  WHERE {self._kept}){self._rest}"  # noqa: S608

    def weight(self) -> int:
        """Characters of SQL, each call of a macro as ``MACRO``: what planning and one row of the query grow with."""
        return len(self._kept) + len(self._rest) + MACRO * self._macro_calls

    def script(self, files: Sequence[str]) -> str:
        """All that runs, as text."""
        return "\n".join([*self.macros, self.query(files) + ";"])


def compile_view(view: Mapping[str, Any], *, tolerant: bool = False) -> Plan:
    """Compile a ViewDefinition. Raises: ViewError with a code and the place in the view.

    ``tolerant``: what cannot be computed of one resource (a number that leaves its range) is empty for that resource
    and stops nothing; and no text is put together (VHT-VIEW-LIMIT). ``repeat`` is not tolerant.
    """
    read = read_view(view)
    try:
        first = _Planner(read, tolerant=tolerant)
        first.expressions()  # grows the read schema; the second planner writes SQL against its final form
        return _Planner(read, first.root, first.nodes, first.indexed, tolerant=tolerant).plan()
    except RecursionError as error:
        raise view_error("LIMIT", Place(), "an expression nests too deep") from error


@dataclass
class _Planner:
    view: View
    root: ReadNode = field(default_factory=lambda: ReadNode(""))
    nodes: dict[str, ReadNode] = field(default_factory=dict)
    indexed: set[str] = field(default_factory=set)
    stages: list[Expression] = field(default_factory=list)
    count: int = 0
    tolerant: bool = False

    def expressions(self) -> tuple[list[OutputColumn], Expression, Expression]:
        """The columns, which resources are kept, and all that follows their reading."""
        self.root.type = self.view.resource
        self.compiler = PathCompiler(
            {constant.name: constant for constant in self.view.constants}, tolerant=self.tolerant
        )
        scope = Scope(Value(sql.TRUE, self.view.resource, node=self.root, root=True), sql.number(0))
        conditions = [self._condition(scope, where.path, where.place) for where in self.view.where]
        columns = [column for select in self.view.selects for column in self._select(select, scope)]
        self._names_differ(columns)
        kept = sql.infix("AND", *map(self._tried, conditions)) if conditions else sql.TRUE
        shown = {column.name: self._tried(column.expression) for column in columns}
        rest = sql.query(*self.stages, "\nSELECT\n  ", *_aliased(shown, ",\n  "), f"\nFROM {self._last()}")
        return columns, kept, rest

    def plan(self) -> Plan:
        columns, kept, rest = self.expressions()
        if rest.length > MAX_SQL:
            raise view_error("LIMIT", Place(), "the view unfolds to too much SQL")
        return Plan(
            self.view.resource,
            tuple(columns),
            prelude(kept, rest),
            tuple(sorted(self.root.fields.items())),
            render(kept),
            render(rest),
            kept.macro_calls + rest.macro_calls,
        )

    def _tried(self, expression: Expression) -> Expression:
        return sql.call("TRY", expression) if self.tolerant else expression

    def _last(self) -> str:
        return f"_s{len(self.stages)}"

    def _stage(self, added: Mapping[str, Expression]) -> None:
        start = f",\n_s{len(self.stages) + 1} AS (SELECT *, "
        self.stages.append(sql.query(start, *_aliased(added, ", "), f" FROM {self._last()})"))

    def _new(self, letter: str) -> Column:
        self.count += 1
        return sql.column(f"_{letter}{self.count}")

    def _condition(self, scope: Scope, path: str, place: Place) -> Expression:
        value = self.compiler.path(path, scope.focus, place, scope.row_index)
        if value.type != EMPTY and (value.kind != "boolean" or value.root):
            raise view_error("TYPE", place, f"expected a boolean, found {value.type}")
        return sql.FALSE if value.type == EMPTY else self.compiler.single(value, 0).expression

    def _names_differ(self, columns: list[OutputColumn]) -> None:
        seen: set[str] = set()
        for column in columns:
            if column.name.lower() in seen:
                raise view_error("COLUMN", column.place, f"the name '{column.name}' is taken")
            seen.add(column.name.lower())

    def _select(self, select: Select, scope: Scope) -> list[OutputColumn]:
        if select.iteration is not None:
            scope = self._iterate(select.iteration, scope)
        columns = []
        for column in select.columns:
            value = self.compiler.path(column.path, scope.focus, column.place.member("path"), scope.row_index)
            self._mark(scope)
            columns.append(output_column(column, value, self.compiler, scope.element_row))
        for inner in select.selects:
            columns += self._select(inner, scope)
        if select.union:
            columns += self._union(select, scope)
        return columns

    def _mark(self, scope: Scope) -> None:
        if self.compiler.row_index_used and scope.index_key:
            self.indexed.add(scope.index_key)

    def _union(self, select: Select, scope: Scope) -> list[OutputColumn]:
        branch = self._new("b")
        numbers = sql.listing(*map(sql.number, range(len(select.union))))
        self._stage({branch.name: sql.call("UNNEST", scope.guarded(numbers))})
        branches = [
            self._select(inner, replace(scope, guard=sql.infix("=", branch, sql.number(number))))
            for number, inner in enumerate(select.union)
        ]
        return union_columns(branches, branch, select.place.member("unionAll"))

    def _iterate(self, iteration: Iteration, scope: Scope) -> Scope:
        if iteration.kind == "repeat":
            item, listed = repeat_list(self.compiler, iteration, scope.focus, scope.row_index, self.nodes)
        else:
            item = self.compiler.path(iteration.paths[0], scope.focus, iteration.place, scope.row_index)
            if item.root:
                raise view_error("TYPE", iteration.place, "the resource itself is no collection")
            listed = self._tried(self.compiler.elements(item))
        self._mark(scope)
        key = str(iteration.place)
        element_row = None
        if iteration.kind == "forEachOrNull":
            listed = self._held(listed)
            element_row = sql.infix(">", sql.call("len", listed), sql.number(0))
            listed = sql.case(element_row, listed, _ONE_NULL)
        listed = scope.guarded(listed)
        element, index = self._new("e"), self._new("i")
        if key in self.indexed:
            listed = self._held(listed)
            positions = sql.call("range", sql.call("len", listed))
            self._stage({element.name: sql.call("UNNEST", listed), index.name: sql.call("UNNEST", positions)})
        else:
            self._stage({element.name: sql.call("UNNEST", listed)})
        if iteration.kind == "repeat" and item.node is not None:
            opened = self._new("o")
            self._stage({opened.name: sql.call("from_json", element, sql.text(item.node.structure()))})
            element = opened
        focus = NOTHING if item.type == EMPTY else item.one(element, element_row or sql.TRUE)
        return Scope(focus, index, key, scope.guard, element_row)

    def _held(self, listed: Expression) -> Column:
        """A list computed once and used twice."""
        name = self._new("l")
        self._stage({name.name: listed})
        return name


def _aliased(expressions: Mapping[str, Expression], separator: str) -> list[str | Expression]:
    """A select list."""
    parts: list[str | Expression] = []
    for name, expression in expressions.items():
        parts += [separator if parts else "", expression, f" AS {identifier(name)}"]
    return parts
