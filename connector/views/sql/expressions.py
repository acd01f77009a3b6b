"""SQL expressions as trees: what a path compiles to, and the one place where it becomes text.

Brackets follow one rule: an operand of an operator stands in brackets, unless it is one piece (a name, a literal, a
call, a CAST, a CASE, a list). No operator's precedence counts.

Nodes are immutable and may be shared. Text repeats a shared node wherever it stands, so a few nodes may stand for more
text than memory holds: every node knows how long it is written out (``length``), before anything is written.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from connector.duckdb_lockdown import quoted
from connector.views.sql.schema import identifier

__all__ = ["Call", "Case", "Cast", "Column", "Constant", "Expression", "Field", "Infix", "Lambda", "ListOf", "Macro",
           "Parameter", "Postfix", "Prefix", "Query", "StructOf", "Subscript", "Text", "is_chain", "pieces",
           "render"]  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Expression:
    """Each of ``operands`` is written once, in this order. ``length``: characters; ``macro_calls``: as written
    out, those that are not light."""

    operands: tuple["Expression", ...] = field(default=(), repr=False)
    length: int = field(init=False, repr=False)
    macro_calls: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        length, macro_calls = 0, int(isinstance(self, Macro) and not self.light)
        for piece in pieces(self):
            if isinstance(piece, str):
                length += len(piece)
            else:
                length += piece.length
                macro_calls += piece.macro_calls
        object.__setattr__(self, "length", length)
        object.__setattr__(self, "macro_calls", macro_calls)


@dataclass(frozen=True, eq=False, kw_only=True)
class Column(Expression):
    """A column or table by its name, always quoted."""

    name: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Parameter(Expression):
    """The parameter of a lambda; its name is the compiler's own, and stands in one lambda only."""

    name: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Expression):
    """``NULL``, ``true``, ``false`` or a number without a sign, as SQL writes it."""

    sql: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Text(Expression):
    """A string literal."""

    value: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Field(Expression):
    """``source."name"``, of a struct."""

    name: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Subscript(Expression):
    """``source[position]``, counted from 1."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Call(Expression):
    """A call of one of DuckDB's functions."""

    function: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Macro(Call):
    """A call of one of ``connector.views.sql.macros``. ``light``: it unfolds to no more than a few operations."""

    light: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Infix(Expression):
    """``a AND b AND c``, ``a + b``: two operands or more, with ``operator`` between them."""

    operator: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Prefix(Expression):
    """``NOT x``, ``- x``."""

    operator: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Postfix(Expression):
    """``x IS NULL``, ``x IS NOT NULL``."""

    operator: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Case(Expression):
    """``operands`` are condition, value, condition, value…, and what holds otherwise where their number is odd."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Cast(Expression):
    """``lenient``: what does not fit ``type`` is NULL (TRY_CAST)."""

    type: str
    lenient: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Lambda(Expression):
    """``lambda parameter: operand``: an argument of a call."""

    parameter: Parameter


@dataclass(frozen=True, eq=False, kw_only=True)
class ListOf(Expression):
    """``[a, b]``."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StructOf(Expression):
    """``{'name': a}``, a name for each operand."""

    names: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Query(Expression):
    """SQL that is no expression (a subquery in its own brackets, a stage, a select list) with expressions in it:
    ``texts`` are one more than ``operands`` and stand around them."""

    texts: tuple[str, ...]


_Pieces = list[str | Expression]


def pieces(node: Expression) -> _Pieces:
    """How ``node`` is written: text and, in their order, its operands."""
    operands = node.operands
    match node:
        case Column():
            return [identifier(node.name)]
        case Parameter():
            return [node.name]
        case Constant():
            return [node.sql]
        case Text():
            return [quoted(node.value)]
        case Field():
            return [*_bracketed(operands[0], bare=is_chain(operands[0])), f".{identifier(node.name)}"]
        case Subscript():
            whole = is_chain(operands[0]) or isinstance(operands[0], Call)
            return [*_bracketed(operands[0], bare=whole), "[", operands[1], "]"]
        case Call():
            return [f"{node.function}(", *_separated(operands), ")"]
        case Infix():
            return _joined([_operand(operand) for operand in operands], f" {node.operator} ")
        case Prefix():
            return [f"{node.operator} ", *_operand(operands[0])]
        case Postfix():
            return [*_operand(operands[0]), f" {node.operator}"]
        case Case():
            return _case(operands)
        case Cast():
            return ["TRY_CAST(" if node.lenient else "CAST(", operands[0], f" AS {node.type})"]
        case Lambda():
            return [f"lambda {node.parameter.name}: ", operands[0]]
        case ListOf():
            return ["[", *_separated(operands), "]"]
        case StructOf():
            named = zip(node.names, operands, strict=True)
            return ["{", *_joined([[f"{quoted(name)}: ", operand] for name, operand in named], ", "), "}"]
        case Query():
            around: _Pieces = [node.texts[0]]
            for operand, text in zip(operands, node.texts[1:], strict=True):
                around += [operand, text]
            return around
    raise AssertionError(type(node))


def is_chain(node: Expression) -> bool:
    """True of a name or constant and the fields of one: written twice, it is computed once."""
    while isinstance(node, Field):
        node = node.operands[0]
    return isinstance(node, Column | Parameter | Constant)


def render(expression: Expression) -> str:
    """The SQL. It has ``expression.length`` characters: look at that first."""
    written: list[str] = []
    pending: _Pieces = [expression]
    while pending:
        piece = pending.pop()
        if isinstance(piece, str):
            written.append(piece)
        else:
            pending.extend(reversed(pieces(piece)))
    return "".join(written)


def _bracketed(operand: Expression, *, bare: bool) -> _Pieces:
    return [operand] if bare else ["(", operand, ")"]


def _operand(operand: Expression) -> _Pieces:
    return _bracketed(operand, bare=not isinstance(operand, Infix | Prefix | Postfix))


def _joined(parts: Iterable[Sequence[str | Expression]], separator: str) -> _Pieces:
    joined: _Pieces = []
    for part in parts:
        joined += [separator, *part] if joined else part
    return joined


def _separated(operands: Iterable[Expression]) -> _Pieces:
    return _joined([[operand] for operand in operands], ", ")


def _case(operands: tuple[Expression, ...]) -> _Pieces:
    written: _Pieces = ["CASE"]
    for condition, value in zip(operands[::2], operands[1::2], strict=False):
        written += [" WHEN ", condition, " THEN ", value]
    if len(operands) % 2:
        written += [" ELSE ", operands[-1]]
    return [*written, " END"]
