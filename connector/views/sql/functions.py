"""Functions of the FHIRPath subset: SQL on FHIR v2, "Required FHIRPath Expressions/Functions", and what FHIRPath has
beside them at no cost (``count``, ``last``, ``exists(criteria)``)."""

from collections.abc import Callable
from dataclasses import replace

from connector.fhir.r4.elements import EMPTY, is_resource, is_type
from connector.views.sql import building as sql
from connector.views.sql.compiler_protocol import Compiler
from connector.views.sql.expressions import Expression, Text
from connector.views.sql.grammar import Call, Member, Node
from connector.views.sql.presence import beside, is_there
from connector.views.sql.values import NOTHING, Choosing, Value, choose, each, plain
from connector.views.sql.view_errors import view_error

__all__ = ["FUNCTIONS", "call"]

# These may stand on a choice element that is not chosen yet, or on a primitive's extensions.
_OPEN = ("empty", "exists", "extension", "ofType")

_Function = Callable[[Compiler, Value, Call], Value]


def call(compiler: Compiler, node: Call, focus: Value) -> Value:
    """Raises: VHT-VIEW-FUNCTION for an unknown function or a wrong number of arguments."""
    if node.name not in FUNCTIONS and node.name not in _OPEN:
        known = ", ".join(sorted([*FUNCTIONS, *_OPEN]))
        message = f"no function '{node.name[:40]}'"
        raise view_error("FUNCTION", compiler.place, message, at=node.at, hint=f"there are: {known}")
    _arity(compiler, node)
    if node.name == "extension":
        return _extension(compiler, node, focus)
    source = compiler.any(node.source, focus) if node.source is not None else focus
    if node.name == "ofType":
        return _of_type(compiler, source, node)
    if node.name in {"exists", "empty"}:
        exists = _exists(compiler, source, node)
        return Value(exists if node.name == "exists" else sql.negation(exists), "boolean")
    if isinstance(source, Choosing):
        assert node.source is not None
        source = compiler.value(node.source, focus)
    return FUNCTIONS[node.name](compiler, source, node)


def _arity(compiler: Compiler, node: Call) -> None:
    least, most = _ARITY.get(node.name, (0, 0))
    if not least <= len(node.arguments) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise view_error("FUNCTION", compiler.place, f"{node.name}() takes {wanted} arguments", at=node.at)


def _text(compiler: Compiler, node: Node, name: str) -> Text:
    """A string known when compiling: a literal or a constant."""
    value = compiler.value(node, NOTHING)
    if value.kind != "string" or not isinstance(value.expression, Text):
        raise view_error("TYPE", compiler.place, f"{name}() takes a string", at=node.at)
    return value.expression


def _filtered(compiler: Compiler, source: Value, criteria: Node) -> Value:
    if source.type == EMPTY:
        compiler.value(criteria, NOTHING)
        return NOTHING
    if source.root:
        condition = compiler.condition(criteria, source)
        there = condition if source.expression is sql.TRUE else sql.infix("AND", source.expression, condition)
        return replace(source, expression=there)
    item = compiler.fresh()
    if source.many:
        condition = compiler.condition(criteria, source.one(item, sql.TRUE))
        kept = sql.keeping(compiler.elements(source), item, condition)
        return replace(source, expression=kept, dense=True, origin=None)
    condition = compiler.condition(criteria, source.one(item, is_there(source, compiler.fresh)))
    there = sql.infix("AND", is_there(source, compiler.fresh), each(source, item, condition))
    return source.one(each(source, item, sql.case(condition, item)), there)


def _length(compiler: Compiler, value: Value) -> Expression:
    return sql.call("coalesce", sql.call("len", compiler.elements(value)), sql.number(0))


def _exists(compiler: Compiler, source: Value | Choosing, node: Call) -> Expression:
    if isinstance(source, Choosing):
        if node.arguments:
            raise view_error("CHOICE", compiler.place, "choose a type first", at=node.at, hint="…ofType(…).exists(…)")
        options = [choose(source, name, compiler.fresh()) for name in source.choice.options]
        return sql.infix("OR", *(is_there(option, compiler.fresh) for option in options))
    if node.arguments:
        source = _filtered(compiler, source, node.arguments[0])
    return is_there(source, compiler.fresh)


def _type_name(compiler: Compiler, node: Node) -> str:
    """A type specifier: ``Quantity``, ``FHIR.Quantity``."""
    if isinstance(node, Member) and (node.source is None or node.source == Member(None, "FHIR", node.source.at)):
        if is_type(node.name):
            return node.name
        raise view_error("TYPE", compiler.place, f"'{node.name[:40]}' is no FHIR R4 type", at=node.at)
    raise view_error("TYPE", compiler.place, "expected the name of a type", at=node.at)


def _of_type(compiler: Compiler, source: Value | Choosing, node: Call) -> Value:
    wanted = _type_name(compiler, node.arguments[0])
    if isinstance(source, Choosing):
        return choose(source, wanted, compiler.fresh())
    if source.type == "Resource":
        raise view_error("TYPE", compiler.place, "elements of embedded resources are not known", at=node.at)
    return source if source.type == wanted else NOTHING


def _extension(compiler: Compiler, node: Call, focus: Value) -> Value:
    """``extension(url)``, on primitives too: theirs stand beside them in JSON, under ``_name``."""
    url = _text(compiler, node.arguments[0], "extension")
    source = compiler.value(node.source, focus) if node.source is not None else focus
    if source.type == EMPTY:
        return NOTHING
    if source.kind != "complex":
        if source.origin is None:
            raise view_error("TYPE", compiler.place, "this value has no extensions", at=node.at)
        source = beside(source.origin, compiler.fresh)
    extensions = compiler.step(source, "extension", node.at)
    assert isinstance(extensions, Value)
    item = compiler.fresh()
    its_url = compiler.step(extensions.one(item), "url", node.at)
    assert isinstance(its_url, Value)
    kept = sql.keeping(compiler.elements(extensions), item, sql.infix("=", its_url.expression, url))
    return replace(extensions, expression=kept, dense=True)


def _where(compiler: Compiler, source: Value, node: Call) -> Value:
    return _filtered(compiler, source, node.arguments[0])


def _not(compiler: Compiler, source: Value, node: Call) -> Value:
    if source.type != EMPTY and source.kind != "boolean":
        raise view_error("TYPE", compiler.place, f"not() takes a boolean, not {source.type}", at=node.at)
    unknown = source.type == EMPTY
    operand = sql.cast(sql.NULL, "BOOLEAN") if unknown else compiler.single(source, node.at).expression
    return Value(sql.negation(operand), "boolean")


def _at(position: int) -> _Function:
    def pick(compiler: Compiler, source: Value, _: Call) -> Value:
        if not source.many:
            return source
        items = compiler.elements(source)
        return source.one(sql.subscript(items, position), sql.infix(">", sql.call("len", items), sql.number(0)))

    return pick


def _count(compiler: Compiler, source: Value, _: Call) -> Value:
    if source.many:
        return Value(_length(compiler, source), "integer")
    return Value(sql.case(is_there(source, compiler.fresh), sql.number(1), sql.number(0)), "integer")


def _join(compiler: Compiler, source: Value, node: Call) -> Value:
    separator = _text(compiler, node.arguments[0], "join") if node.arguments else sql.text("")
    if source.type == EMPTY:
        return Value(sql.text(""), "string")
    if source.kind != "string":
        raise view_error("TYPE", compiler.place, f"join() takes strings, not {source.type}", at=node.at)
    compiler.refuse_growth(node.at)
    joined = sql.call("array_to_string", compiler.values(source), separator)
    return Value(sql.call("coalesce", joined, sql.text("")), "string")


def _boundary(side: str) -> _Function:
    """``lowBoundary`` or ``highBoundary``. A decimal's precision is the digits that its reading kept: DuckDB writes
    1.50 as 1.5, and tells 1 from 1.0."""

    def bound(compiler: Compiler, source: Value, node: Call) -> Value:
        if source.type == EMPTY:
            return NOTHING
        macro, result = {
            "decimal": ("decimal", "decimal"),
            "integer": ("decimal", "decimal"),
            "date": ("date" if source.type == "date" else "stamp", source.type),
            "time": ("time", "time"),
        }.get(source.kind, ("", ""))
        if not macro:
            raise view_error("TYPE", compiler.place, f"a {source.type} has no boundary", at=node.at)
        value = compiler.single(source, node.at)
        operand = plain(value) if value.fixed else value.expression
        if macro == "decimal":
            if value.node is not None:
                value.node.exact = True
            operand = sql.cast(operand, "VARCHAR")
        return Value(sql.macro_call(f"vht_{side}_{macro}", compiler.fresh(), operand), result)

    return bound


def _resource_key(compiler: Compiler, source: Value, node: Call) -> Value:
    if not source.root:
        raise view_error("FUNCTION", compiler.place, "getResourceKey() belongs to the resource itself", at=node.at)
    key = compiler.step(source, "id", node.at)
    assert isinstance(key, Value)
    return replace(key, type="string", node=None, origin=None)


def _reference_key(compiler: Compiler, source: Value, node: Call) -> Value:
    """The id that a reference points at: relative, absolute, versioned, or ``urn:uuid:``.

    A ``urn:uuid:`` names no type: with a type argument it counts where ``Reference.type`` agrees or is absent and
    the element may point there. Contained (``#``) and logical references have no key.
    """
    if source.type == EMPTY:
        return NOTHING
    if source.type != "Reference":
        raise view_error("TYPE", compiler.place, f"getReferenceKey() takes a Reference, not {source.type}", at=node.at)
    wanted = _type_name(compiler, node.arguments[0]) if node.arguments else ""
    if wanted and not is_resource(wanted):
        raise view_error("TYPE", compiler.place, f"{wanted} is no resource type", at=node.at)
    item = compiler.fresh()
    reference, its_type = (
        plain(compiler.value(Member(None, name, node.at), source.one(item))) for name in ("reference", "type")
    )
    urn: Expression = sql.FALSE if wanted else sql.TRUE
    if wanted and (not source.targets or wanted in source.targets):
        agrees = sql.infix("=", sql.call("regexp_extract", its_type, sql.text("[^/]*$")), sql.text(wanted))
        urn = sql.infix("OR", sql.absent(its_type), agrees)
    key = sql.macro("vht_reference_key", reference, sql.text(wanted or "[A-Z][A-Za-z]+"), urn)
    return Value(each(source, item, key), "string", source.many, not source.many)


FUNCTIONS: dict[str, _Function] = {
    "where": _where,
    "not": _not,
    "first": _at(1),
    "last": _at(-1),
    "count": _count,
    "join": _join,
    "lowBoundary": _boundary("low"),
    "highBoundary": _boundary("high"),
    "getResourceKey": _resource_key,
    "getReferenceKey": _reference_key,
}

_ARITY = {"where": (1, 1), "exists": (0, 1), "ofType": (1, 1), "extension": (1, 1), "join": (0, 1),
          "getReferenceKey": (0, 1)}  # fmt: skip
