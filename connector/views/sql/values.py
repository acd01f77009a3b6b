"""What a FHIRPath expression is while it becomes SQL: a SQL expression with its FHIR type and cardinality.

A single value is a nullable SQL value, NULL being the empty collection. A collection is a SQL list; NULL and ``[]`` are
both empty. Boolean logic is three-valued in both languages, so ``and``, ``or`` and ``not`` carry over as they are.

An element may be there without a value: a primitive that has extensions alone (``connector.views.sql.presence``). Such
a one is NULL as a value; among the items of a repeating primitive it is NULL in its place.
"""

from dataclasses import dataclass, replace

from connector.fhir.r4.elements import EMPTY, Choice, Element, is_primitive, kind
from connector.views.sql import building as sql
from connector.views.sql.expressions import Expression, Parameter, is_chain
from connector.views.sql.schema import ReadNode
from connector.views.sql.substitution import substitute
from connector.views.sql.view_errors import Place

__all__ = ["NOTHING", "NOT_SINGLE", "Choosing", "Origin", "Value", "as_list", "choose", "each", "failure", "member",
           "plain", "single", "with_value"]  # fmt: skip

NOT_SINGLE = "VHT-VIEW-NOT-SINGLE"


@dataclass(frozen=True)
class Origin:
    """Whose element a primitive is: its extensions stand beside it, under ``_name``."""

    parent: "Value"
    element: Element


@dataclass(frozen=True)
class Value:
    """``dense``: a NULL in the list is an element without a value, not one that is not there. ``node`` is where it is
    read from; None for what is computed. ``fixed``: a decimal as SQL's DECIMAL, which is exact, not DOUBLE.

    ``root`` marks the resource itself, which has columns, not a SQL value of its own; ``expression`` is then the
    condition under which it is there at all, ``TRUE`` where it always is.

    ``origin`` is that of a primitive just as it was read. ``there``: when this single item is there, where its value
    does not say so.
    """

    expression: Expression
    type: str
    many: bool = False
    dense: bool = True
    node: ReadNode | None = None
    targets: tuple[str, ...] = ()
    root: bool = False
    fixed: bool = False
    origin: Origin | None = None
    there: Expression | None = None

    @property
    def kind(self) -> str:
        return kind(self.type)

    def one(self, expression: Expression, there: Expression | None = None) -> "Value":
        """An item of this collection, standing at ``expression``; ``there`` matters of a primitive alone."""
        known = there if is_primitive(self.type) else None
        return replace(self, expression=expression, many=False, dense=True, origin=None, there=known)


@dataclass(frozen=True)
class Choosing:
    """``value[x]`` before ``ofType`` says which."""

    parent: Value
    choice: Choice


NOTHING = Value(sql.NULL, EMPTY)


def failure(code: str, place: Place, at: int) -> Expression:
    """What stops the query with ``code`` and the place; never with a value."""
    return sql.call("error", sql.text(f"{code} {place.at(at)}"))


def _opened(source: Expression, node: ReadNode) -> Expression:
    return sql.call("from_json", source, sql.text(node.structure())) if node.whole else source


def each(value: Value, parameter: Parameter, item: Expression) -> Expression:
    """``item`` (written over ``parameter``) of the one value, or of each in the list."""
    if value.many:
        return sql.mapping(value.expression, parameter, item)
    if is_chain(value.expression):
        return substitute(item, parameter, value.expression)
    return sql.subscript(sql.mapping(sql.listing(value.expression), parameter, item), 1)


def member(source: Value, element: Element, parameter: Parameter) -> Value:
    """``source.element``: lists flatten; the element joins the read schema."""
    assert source.node is not None
    node = source.node.child(element)
    origin = Origin(source, element) if is_primitive(element.type) else None
    read = Value(sql.NULL, element.type, element.many, True, node, element.targets, origin=origin)
    if source.root:
        column = sql.column(element.name)
        always = source.expression is sql.TRUE
        return replace(read, expression=column if always else sql.case(source.expression, column))
    if not source.many:
        return replace(read, expression=sql.field(_opened(source.expression, source.node), element.name))
    items = sql.mapping(source.expression, parameter, sql.field(_opened(parameter, source.node), element.name))
    flat = sql.call("flatten", items) if element.many else items
    return replace(read, expression=flat, many=True, dense=element.many)


def choose(choosing: Choosing, type_name: str, parameter: Parameter) -> Value:
    """``value.ofType(type_name)``; nothing where the choice has no such option."""
    element = choosing.choice.options.get(type_name)
    return member(choosing.parent, element, parameter) if element else NOTHING


def as_list(value: Value, parameter: Parameter) -> Expression:
    """The items in their order, an element without a value as NULL where it repeats; may be NULL itself when empty."""
    if value.type == EMPTY:
        return sql.listing()
    if not value.many:
        return sql.case(sql.present(value.expression), sql.listing(value.expression), sql.listing())
    return value.expression if value.dense else _without_null(value.expression, parameter)


def with_value(value: Value, parameter: Parameter) -> Expression:
    """The items that have a value, in their order: no NULL; may be NULL itself when empty."""
    if value.many and is_primitive(value.type):
        return _without_null(value.expression, parameter)
    return as_list(value, parameter)


def _without_null(items: Expression, parameter: Parameter) -> Expression:
    return sql.keeping(items, parameter, sql.present(parameter))


def single(value: Value, parameter: Parameter, place: Place, at: int) -> Value:
    """The one item, NULL when empty; more than one stops the query with VHT-VIEW-NOT-SINGLE."""
    if not value.many:
        return value
    items = as_list(value, parameter)
    several = sql.infix(">", sql.call("len", items), sql.number(1))
    item = sql.case(several, failure(NOT_SINGLE, place, at), sql.subscript(items, 1))
    return value.one(item, sql.infix(">", sql.call("len", items), sql.number(0)))


def plain(value: Value) -> Expression:
    """The value in its type's own SQL type, which of a decimal is DOUBLE, the nearest."""
    if value.fixed:
        return sql.cast(sql.cast(value.expression, "VARCHAR"), "DOUBLE")
    if value.node is not None and value.node.exact and value.type == "decimal":
        return sql.cast(value.expression, f"DOUBLE{'[]' if value.many else ''}")
    return value.expression
