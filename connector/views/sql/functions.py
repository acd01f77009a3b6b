"""Functions of the FHIRPath subset: SQL on FHIR v2, "Required FHIRPath Expressions/Functions", and what FHIRPath has
beside them at no cost (``count``, ``last``, ``exists(criteria)``)."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from connector.duckdb_lockdown import quoted
from connector.views.sql.elements import EMPTY, Element, is_resource, is_type
from connector.views.sql.grammar import Call, Member, Node
from connector.views.sql.values import NOTHING, Choosing, Value, choose, macro_call, member, plain, rewrite
from connector.views.sql.view_errors import view_error

if TYPE_CHECKING:
    from connector.views.sql.paths import PathCompiler

__all__ = ["FUNCTIONS", "call"]

# These may stand on a choice element that is not chosen yet, or on a primitive's extensions.
_OPEN = ("empty", "exists", "extension", "ofType")

_Function = Callable[["PathCompiler", Value, Call], Value]


def call(compiler: "PathCompiler", node: Call, focus: Value) -> Value:
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
        found = _exists(compiler, source, node)
        return found if node.name == "exists" else Value(f"(NOT {found.sql})", "boolean")
    if isinstance(source, Choosing):
        assert node.source is not None
        source = compiler.value(node.source, focus)
    return FUNCTIONS[node.name](compiler, source, node)


def _arity(compiler: "PathCompiler", node: Call) -> None:
    least, most = _ARITY.get(node.name, (0, 0))
    if not least <= len(node.arguments) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise view_error("FUNCTION", compiler.place, f"{node.name}() takes {wanted} arguments", at=node.at)


def _text(compiler: "PathCompiler", node: Node, name: str) -> str:
    """A string known when compiling: a literal or a constant."""
    made = compiler.value(node, NOTHING)
    if made.kind != "string" or not made.sql.startswith("'"):
        raise view_error("TYPE", compiler.place, f"{name}() takes a string", at=node.at)
    return made.sql


def _filtered(compiler: "PathCompiler", source: Value, criteria: Node) -> Value:
    if source.type == EMPTY:
        compiler.value(criteria, NOTHING)
        return NOTHING
    if source.root:
        condition = compiler.condition(criteria, source)
        return replace(source, sql=f"({source.sql}) AND ({condition})" if source.sql else f"({condition})")
    variable = compiler.fresh()
    condition = compiler.condition(criteria, source.one(variable))
    if source.many:
        return replace(
            source, sql=f"list_filter({compiler.listed(source)}, lambda {variable}: {condition})", dense=True
        )
    one = replace(source, sql=variable)
    return replace(source, sql=rewrite(source, variable, f"CASE WHEN {condition} THEN {one.sql} END"))


def _present(compiler: "PathCompiler", value: Value) -> str:
    if value.type == EMPTY:
        return "false"
    if value.root:
        return f"coalesce({value.sql}, false)" if value.sql else "true"
    if value.many:
        return f"(coalesce(len({compiler.listed(value)}), 0) > 0)"
    return f"({value.sql} IS NOT NULL)"


def _exists(compiler: "PathCompiler", source: Value | Choosing, node: Call) -> Value:
    if isinstance(source, Choosing):
        if node.arguments:
            raise view_error("CHOICE", compiler.place, "choose a type first", at=node.at, hint="…ofType(…).exists(…)")
        options = [choose(source, name, compiler.fresh()) for name in source.choice.options]
        return Value("(" + " OR ".join(_present(compiler, one) for one in options) + ")", "boolean")
    if node.arguments:
        source = _filtered(compiler, source, node.arguments[0])
    return Value(_present(compiler, source), "boolean")


def _type_name(compiler: "PathCompiler", node: Node) -> str:
    """A type specifier: ``Quantity``, ``FHIR.Quantity``."""
    if isinstance(node, Member) and (node.source is None or node.source == Member(None, "FHIR", node.source.at)):
        if is_type(node.name):
            return node.name
        raise view_error("TYPE", compiler.place, f"'{node.name[:40]}' is no FHIR R4 type", at=node.at)
    raise view_error("TYPE", compiler.place, "expected the name of a type", at=node.at)


def _of_type(compiler: "PathCompiler", source: Value | Choosing, node: Call) -> Value:
    wanted = _type_name(compiler, node.arguments[0])
    if isinstance(source, Choosing):
        return choose(source, wanted, compiler.fresh())
    if source.type == "Resource":
        raise view_error("TYPE", compiler.place, "elements of embedded resources are not known", at=node.at)
    return source if source.type == wanted else NOTHING


def _extension(compiler: "PathCompiler", node: Call, focus: Value) -> Value:
    """``extension(url)``, on primitives too: theirs stand beside them in JSON, under ``_name``."""
    url = _text(compiler, node.arguments[0], "extension")
    source = compiler.value(node.source, focus) if node.source is not None else focus
    if source.type == EMPTY:
        return NOTHING
    if source.kind != "complex":
        if not isinstance(node.source, Member) or source.node is None:
            raise view_error("TYPE", compiler.place, "this value has no extensions", at=node.at)
        parent = focus if node.source.source is None else compiler.value(node.source.source, focus)
        source = member(parent, Element(f"_{node.source.name}", "Element", source.node.many), compiler.fresh())
    extensions = compiler.step(source, "extension", node.at)
    assert isinstance(extensions, Value)
    variable = compiler.fresh()
    item = compiler.step(extensions.one(variable), "url", node.at)
    assert isinstance(item, Value)
    kept = f"list_filter({compiler.listed(extensions)}, lambda {variable}: {item.sql} = {url})"
    return replace(extensions, sql=kept, dense=True)


def _where(compiler: "PathCompiler", source: Value, node: Call) -> Value:
    return _filtered(compiler, source, node.arguments[0])


def _not(compiler: "PathCompiler", source: Value, node: Call) -> Value:
    if source.type != EMPTY and source.kind != "boolean":
        raise view_error("TYPE", compiler.place, f"not() takes a boolean, not {source.type}", at=node.at)
    sql = "CAST(NULL AS BOOLEAN)" if source.type == EMPTY else compiler.single(source, node.at).sql
    return Value(f"(NOT ({sql}))", "boolean")


def _at(position: str) -> _Function:
    def pick(compiler: "PathCompiler", source: Value, _: Call) -> Value:
        return source.one(f"({compiler.listed(source)})[{position}]") if source.many else source

    return pick


def _count(compiler: "PathCompiler", source: Value, _: Call) -> Value:
    if source.many:
        return Value(f"coalesce(len({compiler.listed(source)}), 0)", "integer")
    return Value(f"CASE WHEN {_present(compiler, source)} THEN 1 ELSE 0 END", "integer")


def _join(compiler: "PathCompiler", source: Value, node: Call) -> Value:
    separator = _text(compiler, node.arguments[0], "join") if node.arguments else "''"
    if source.type == EMPTY:
        return Value("''", "string")
    if source.kind != "string":
        raise view_error("TYPE", compiler.place, f"join() takes strings, not {source.type}", at=node.at)
    compiler.refuse_growth(node.at)
    return Value(f"coalesce(array_to_string({compiler.listed(source)}, {separator}), '')", "string")


def _boundary(side: str) -> _Function:
    """``lowBoundary`` or ``highBoundary``. A decimal's precision is the digits that its reading kept: DuckDB writes
    1.50 as 1.5, and tells 1 from 1.0."""

    def bound(compiler: "PathCompiler", source: Value, node: Call) -> Value:
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
        sql = value.sql
        if macro == "decimal":
            if value.node is not None:
                value.node.exact = True
            sql = f"CAST({sql} AS VARCHAR)"
        return Value(macro_call(f"vht_{side}_{macro}", compiler.fresh(), sql), result)

    return bound


def _resource_key(compiler: "PathCompiler", source: Value, node: Call) -> Value:
    if not source.root:
        raise view_error("FUNCTION", compiler.place, "getResourceKey() belongs to the resource itself", at=node.at)
    key = compiler.step(source, "id", node.at)
    assert isinstance(key, Value)
    return replace(key, type="string", node=None)


def _reference_key(compiler: "PathCompiler", source: Value, node: Call) -> Value:
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
    variable = compiler.fresh()
    item = source.one(variable)
    reference, named = (plain(compiler.value(Member(None, one, node.at), item)) for one in ("reference", "type"))
    urn = "true" if not wanted else "false"
    if wanted and (not source.targets or wanted in source.targets):
        urn = f"({named} IS NULL OR regexp_extract({named}, '[^/]*$') = {quoted(wanted)})"
    key = f"vht_reference_key({reference}, {quoted(wanted or '[A-Z][A-Za-z]+')}, {urn})"
    return Value(rewrite(source, variable, key), "string", source.many, not source.many)


FUNCTIONS: dict[str, _Function] = {
    "where": _where,
    "not": _not,
    "first": _at("1"),
    "last": _at("-1"),
    "count": _count,
    "join": _join,
    "lowBoundary": _boundary("low"),
    "highBoundary": _boundary("high"),
    "getResourceKey": _resource_key,
    "getReferenceKey": _reference_key,
}

_ARITY = {"where": (1, 1), "exists": (0, 1), "ofType": (1, 1), "extension": (1, 1), "join": (0, 1),
          "getReferenceKey": (0, 1)}  # fmt: skip
