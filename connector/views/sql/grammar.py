"""FHIRPath expressions of the SQL on FHIR v2 subset, parsed to a tree by precedence climbing.

Grammar and precedence: FHIRPath 2.0 (N1), sections 6.8 and 12. What the subset leaves out (``is``, ``as``, ``in``,
``|``, quantities) is refused by name, so that nobody takes it for a misspelling.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from connector.views.sql.tokens import Token, tokenize
from connector.views.sql.view_errors import Place, view_error

__all__ = ["Binary", "Call", "Index", "Literal", "Member", "Name", "Negative", "Node", "This", "parse"]

MAX_DEPTH = 48

_BINDING: Mapping[str, int] = {
    "implies": 1, "or": 2, "xor": 2, "and": 3, "=": 5, "!=": 5, "<": 6, ">": 6, "<=": 6, ">=": 6,
    "+": 9, "-": 9, "&": 9, "*": 10, "/": 10, "div": 10, "mod": 10,
}  # fmt: skip
_OUTSIDE = {"is", "as", "in", "contains", "|", "~", "!~", "{"}
_CALENDAR = {f"{unit}{plural}" for plural in ("", "s") for unit in (
    "year", "month", "week", "day", "hour", "minute", "second", "millisecond")}  # fmt: skip


@dataclass(frozen=True)
class Literal:
    """``type`` is a FHIR primitive; the value of a boolean, integer or decimal is its text."""

    text: str
    type: str
    at: int


@dataclass(frozen=True)
class Name:
    """``%name``: a constant of the view, or ``%rowIndex``."""

    name: str
    at: int


@dataclass(frozen=True)
class This:
    at: int


@dataclass(frozen=True)
class Member:
    """``source.name``; without a source the name is looked up in the expression's focus."""

    source: "Node | None"
    name: str
    at: int


@dataclass(frozen=True)
class Call:
    source: "Node | None"
    name: str
    arguments: "tuple[Node, ...]"
    at: int


@dataclass(frozen=True)
class Index:
    source: "Node"
    index: "Node"
    at: int


@dataclass(frozen=True)
class Negative:
    operand: "Node"
    at: int


@dataclass(frozen=True)
class Binary:
    operator: str
    left: "Node"
    right: "Node"
    at: int


Node = Literal | Name | This | Member | Call | Index | Negative | Binary


def parse(path: str, place: Place) -> Node:
    """The tree of ``path``. Raises: ViewError VHT-VIEW-SYNTAX or VHT-VIEW-LIMIT with the character it stands at."""
    parser = _Parser(tokenize(path, place), place)
    node = parser.expression(0)
    parser.expect("end")
    return node


class _Parser:
    def __init__(self, tokens: list[Token], place: Place) -> None:
        self._tokens = tokens
        self._place = place
        self._next = 0
        self._depth = 0

    @property
    def token(self) -> Token:
        return self._tokens[self._next]

    def take(self) -> Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def expect(self, kind: str, text: str = "") -> Token:
        if self.token.kind != kind or (text and self.token.text != text):
            wanted = f"'{text}'" if text else {"end": "the end", "name": "a name"}.get(kind, kind)
            if self.token.text in _OUTSIDE:
                raise view_error(
                    "SYNTAX", self._place, f"'{self.token.text}' is not in SQL on FHIR's FHIRPath", at=self.token.at
                )
            raise view_error("SYNTAX", self._place, f"expected {wanted}", at=self.token.at)
        return self.take()

    def expression(self, least: int) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise view_error("LIMIT", self._place, f"expressions nest at most {MAX_DEPTH} deep", at=self.token.at)
        node = self._unary()
        while self.token.kind in {"symbol", "name"} and (binding := _BINDING.get(self.token.text, -1)) >= max(least, 1):
            operator = self.take()
            node = Binary(operator.text, node, self.expression(binding + 1), operator.at)
        self._depth -= 1
        return node

    def _unary(self) -> Node:
        if self.token.kind == "symbol" and self.token.text in "+-":
            sign = self.take()
            operand = self._unary_operand()
            return Negative(operand, sign.at) if sign.text == "-" else operand
        return self._postfix()

    def _unary_operand(self) -> Node:
        if self.token.kind == "symbol" and self.token.text in "+-":
            raise view_error("SYNTAX", self._place, "one sign is enough", at=self.token.at)
        return self._postfix()

    def _postfix(self) -> Node:
        node = self._term()
        while self.token.kind == "symbol" and self.token.text in {".", "["}:
            opening = self.take()
            if opening.text == "[":
                node = Index(node, self.expression(0), opening.at)
                self.expect("symbol", "]")
            else:
                node = self._named(node, self.expect("name"))
        return node

    def _named(self, source: Node | None, name: Token) -> Node:
        if self.token.kind != "symbol" or self.token.text != "(":
            return Member(source, name.text, name.at)
        self.take()
        arguments: list[Node] = []
        while self.token.text != ")" or self.token.kind != "symbol":
            if arguments:
                self.expect("symbol", ",")
            arguments.append(self.expression(0))
        self.take()
        return Call(source, name.text, tuple(arguments), name.at)

    def _term(self) -> Node:
        token = self.token
        if token.kind == "symbol" and token.text == "(":
            self.take()
            node = self.expression(0)
            self.expect("symbol", ")")
            return node
        if token.kind == "variable":
            if token.text != "$this":
                raise view_error("SYNTAX", self._place, f"{token.text} is not in SQL on FHIR's FHIRPath", at=token.at)
            return This(self.take().at)
        if token.kind == "constant":
            return Name(self.take().text, token.at)
        if token.kind == "name" and token.text in {"true", "false"}:
            return Literal(self.take().text, "boolean", token.at)
        if token.kind == "name":
            return self._named(None, self.take())
        return self._literal()

    def _literal(self) -> Node:
        token = self.token
        if token.kind not in {"string", "number", "date", "datetime", "time"}:
            self.expect("an expression" if token.text not in _OUTSIDE else "name")
        self.take()
        if token.kind == "number":
            if self.token.kind == "string" or (self.token.kind == "name" and self.token.text in _CALENDAR):
                raise view_error(
                    "SYNTAX", self._place, "quantities are not in SQL on FHIR's FHIRPath", at=self.token.at
                )
            return Literal(token.text, "decimal" if "." in token.text else "integer", token.at)
        if token.kind == "string":
            return Literal(token.text, "string", token.at)
        text = re.sub(r"^@T?|T$", "", token.text)
        return Literal(text, {"datetime": "dateTime"}.get(token.kind, token.kind), token.at)
