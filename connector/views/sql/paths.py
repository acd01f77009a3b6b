"""FHIRPath to SQL: names resolve against FHIR's definitions, and each name read grows the read schema."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from connector.fhir.r4.elements import EMPTY, Choice, element, kind
from connector.views.sql import building as sql
from connector.views.sql import functions, operators
from connector.views.sql.datetime_text import is_stamp
from connector.views.sql.definition import Constant
from connector.views.sql.expressions import Expression, Parameter
from connector.views.sql.grammar import Binary, Call, Index, Literal, Member, Name, Negative, Node, This, parse
from connector.views.sql.presence import elements, is_there
from connector.views.sql.values import NOTHING, Choosing, Value, member, single, with_value
from connector.views.sql.view_errors import Place, view_error

__all__ = ["PathCompiler", "literal"]

_LOGIC = {"and", "or", "xor", "implies"}
MAX_DIGITS = 40
_MAX_INTEGER = 2**63 - 1
MAX_SQL = 200_000


def literal(text: str, type_name: str, place: Place, at: int | None = None) -> Value:
    """A literal or constant as a value. Raises: VHT-VIEW-LIMIT for an integer beyond 64 bits, a number of more than
    ``MAX_DIGITS`` characters or one that is not finite."""
    computes_as = kind(type_name)
    if computes_as == "boolean":
        return Value(sql.TRUE if text == "true" else sql.FALSE, type_name)
    if computes_as in {"integer", "decimal"} and (len(text) > MAX_DIGITS or not math.isfinite(float(text))):
        raise view_error("LIMIT", place, f"a number has at most {MAX_DIGITS} characters, and is finite", at=at)
    if computes_as == "integer":
        if abs(int(text)) > _MAX_INTEGER:
            raise view_error("LIMIT", place, "an integer has at most 64 bits", at=at)
        return Value(sql.cast(sql.number(text), "BIGINT"), type_name)
    if computes_as == "decimal":
        return Value(sql.cast(sql.text(text), "DOUBLE"), type_name)
    if computes_as in {"date", "time"} and not is_stamp(text, type_name):
        raise view_error("SYNTAX", place, f"no such {type_name}", at=at)
    return Value(sql.text(text), type_name)


@dataclass
class PathCompiler:
    """Compiles the paths of one view. ``lenient`` (in ``repeat``, whose paths apply to several types): a name that a
    type does not have is empty there instead of an error. ``tolerant``: text is never put together, so that no value
    is longer than the resource."""

    constants: Mapping[str, Constant]
    place: Place = field(default_factory=Place)
    tolerant: bool = False
    row_index: Expression = sql.number(0)  # noqa: RUF009 - nodes do not change
    row_index_used: bool = False
    lenient: bool = False
    _names: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def fresh(self) -> Parameter:
        return Parameter(name=f"_x{next(self._names)}_")

    def path(self, text: str, focus: Value, place: Place, row_index: Expression, *, lenient: bool = False) -> Value:
        """Compile ``text`` with ``focus`` as ``$this``. ``row_index_used`` says afterwards whether it asked for it."""
        self.place, self.row_index, self.lenient, self.row_index_used = place, row_index, lenient, False
        return self.value(parse(text, place), focus)

    def value(self, node: Node, focus: Value) -> Value:
        value = self.any(node, focus)
        if isinstance(value, Choosing):
            choice = value.choice
            raise view_error(
                "CHOICE", self.place, f"{choice.name} can be of several types", at=node.at,
                hint=f"write {choice.name}.ofType(…) with one of: {', '.join(choice.options)}",
            )  # fmt: skip
        return value

    def any(self, node: Node, focus: Value) -> Value | Choosing:
        """As ``value``, but a choice element may still be open. Nested list logic can double its SQL at each level:
        what grows beyond a bound is refused on the way, not when memory ends."""
        value = self._any(node, focus)
        if isinstance(value, Value) and value.expression.length > MAX_SQL:
            raise view_error("LIMIT", self.place, "the expression unfolds to too much SQL", at=node.at)
        return value

    def _any(self, node: Node, focus: Value) -> Value | Choosing:
        match node:
            case Literal():
                return literal(node.text, node.type, self.place, node.at)
            case Name():
                return self._constant(node)
            case This():
                return focus
            case Member():
                return self._member(node, focus)
            case Call():
                return functions.call(self, node, focus)
            case Index():
                return self._index(node, focus)
            case Negative():
                operand = self.value(node.operand, focus)
                return operators.negate(operand, self.fresh(), self.place, node.at, tolerant=self.tolerant)
            case Binary():
                return self._binary(node, focus)

    def condition(self, node: Node, focus: Value) -> Expression:
        return operators.boolean(self.value(node, focus), self.fresh(), self.place, node.at)

    def single(self, value: Value, at: int) -> Value:
        return single(value, self.fresh(), self.place, at)

    def elements(self, value: Value) -> Expression:
        return elements(value, self.fresh)

    def values(self, value: Value) -> Expression:
        return with_value(value, self.fresh())

    def refuse_growth(self, at: int) -> None:
        """Raises: VHT-VIEW-LIMIT where the view may not put text together."""
        if self.tolerant:
            raise view_error("LIMIT", self.place, "text is not put together here", at=at, hint="compare the parts")

    def step(self, source: Value, name: str, at: int) -> Value | Choosing:
        """``source.name`` by FHIR's definitions."""
        if source.type == EMPTY:
            return NOTHING
        definition = element(source.type, name)
        if definition is None and self.lenient:
            return NOTHING
        if definition is None or source.node is None:
            raise view_error("ELEMENT", self.place, f"{source.type} has no element '{name[:40]}'", at=at)
        if isinstance(definition, Choice):
            return Choosing(source, definition)
        return member(source, definition, self.fresh())

    def _constant(self, node: Name) -> Value:
        if node.name == "rowIndex":
            self.row_index_used = True
            return Value(self.row_index, "integer")
        constant = self.constants.get(node.name)
        if constant is None:
            raise view_error("CONSTANT", self.place, f"no constant is named '{node.name[:40]}'", at=node.at)
        return literal(constant.text, constant.type, self.place, node.at)

    def _member(self, node: Member, focus: Value) -> Value | Choosing:
        if node.source is None:
            if node.name == focus.type and focus.root:
                return focus
            return self.step(focus, node.name, node.at)
        return self.step(self.value(node.source, focus), node.name, node.at)

    def _index(self, node: Index, focus: Value) -> Value:
        source = self.value(node.source, focus)
        index = self.single(self.value(node.index, focus), node.at)
        if index.kind != "integer":
            raise view_error("TYPE", self.place, "an index is an integer", at=node.at)
        if source.type == EMPTY:
            return NOTHING
        if not source.many:
            if source.root:
                raise view_error("TYPE", self.place, "the resource is not a list", at=node.at)
            is_first = sql.infix("=", index.expression, sql.number(0))
            there = sql.infix("AND", is_first, is_there(source, self.fresh))
            return source.one(sql.case(is_first, source.expression), there)
        one_more = literal("1", "integer", self.place)
        position = operators.apply("+", index, one_more, self.fresh, self.place, node.at, tolerant=self.tolerant)
        items, from_first = self.elements(source), sql.infix(">=", index.expression, sql.number(0))
        in_list = sql.infix("<", index.expression, sql.call("len", items))
        item = sql.case(from_first, sql.subscript(items, position.expression))
        return source.one(item, sql.infix("AND", from_first, in_list))

    def _binary(self, node: Binary, focus: Value) -> Value:
        if node.operator in {"and", "or"}:
            return operators.conjunction(node.operator, self._chain(node, focus))
        if node.operator in _LOGIC:
            return operators.conjunction(
                node.operator, [self.condition(node.left, focus), self.condition(node.right, focus)]
            )
        left, right = self.value(node.left, focus), self.value(node.right, focus)
        value = operators.apply(node.operator, left, right, self.fresh, self.place, node.at, tolerant=self.tolerant)
        if value.kind == "string":
            self.refuse_growth(node.at)
        return value

    def _chain(self, node: Binary, focus: Value) -> list[Expression]:
        """The conditions of ``a or b or c``, without nesting: a code list may be long."""
        conditions: list[Expression] = []
        rest: Node = node
        while isinstance(rest, Binary) and rest.operator == node.operator:
            conditions.append(self.condition(rest.right, focus))
            rest = rest.left
        return [self.condition(rest, focus), *reversed(conditions)]
