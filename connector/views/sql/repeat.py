"""``repeat``: everything that its paths reach, over and over, as one list in depth-first order.

The elements are kept as JSON, whose type is the same at every depth; a recursive query correlated to the row walks
them. A path must name an element first, so each step goes deeper into a finite document and the walk ends.
"""

from collections.abc import Callable

from connector.fhir.r4.elements import EMPTY
from connector.views.sql import building as sql
from connector.views.sql.definition import Iteration
from connector.views.sql.expressions import Expression, Parameter
from connector.views.sql.grammar import Call, Index, Member, Node, parse
from connector.views.sql.paths import PathCompiler
from connector.views.sql.schema import ReadNode
from connector.views.sql.values import NOTHING, Value, as_list, failure
from connector.views.sql.view_errors import Place, view_error

__all__ = ["MAX_DEPTH", "repeat_list"]

MAX_DEPTH = 100
TOO_DEEP = "VHT-VIEW-DEPTH"
_NO_ITEMS = sql.cast(sql.listing(), "JSON[]")


def repeat_list(
    compiler: PathCompiler, iteration: Iteration, focus: Value, row_index: Expression, nodes: dict[str, ReadNode]
) -> tuple[Value, Expression]:
    """An item of the walk (its node holds what columns read of it) and the list of all items as JSON.

    ``nodes`` keeps the items' node from one compilation to the next. Raises: ViewError VHT-VIEW-REPEAT for a path
    that does not go deeper or paths that end in different types.
    """
    used = False

    def steps(start: Value) -> list[Value]:
        nonlocal used
        values = []
        for text, place in paths:
            _goes_deeper(parse(text, place), place)
            value = compiler.path(text, start, place, row_index, lenient=True)
            used = used or compiler.row_index_used
            if value.type != EMPTY:
                if value.node is None or value.kind != "complex":
                    raise view_error("REPEAT", place, f"repeat walks elements, not a {value.type}")
                value.node.whole = True
                values.append(value)
        return values

    paths = [(text, iteration.place.item(index)) for index, text in enumerate(iteration.paths)]
    starts = steps(focus)
    compiler.row_index_used = used
    if not starts:
        return NOTHING, _NO_ITEMS
    node = nodes.setdefault(str(iteration.place), ReadNode(starts[0].type))
    walk = "_w" + compiler.fresh().name
    inner = steps(Value(sql.field(sql.column(walk), "item"), node.type, node=node))
    compiler.row_index_used = used
    if {value.type for value in [*starts, *inner]} != {node.type}:
        raise view_error("REPEAT", iteration.place, "the paths of a repeat end in one type")
    items = _walk(walk, node, starts, inner, iteration.place, compiler.fresh)
    return Value(sql.NULL, node.type, True, node=node), items


def _walk(
    walk: str, node: ReadNode, starts: list[Value], inner: list[Value], place: Place, fresh: Callable[[], Parameter]
) -> Expression:
    first, deeper, position = _concat(starts, fresh), _concat(inner, fresh), fresh()
    inside, trail = sql.column("inside"), sql.column("trail")
    trails = sql.mapping(_positions(first), position, sql.listing(position))
    further = sql.mapping(_positions(inside), position, sql.call("list_append", trail, position))
    at_the_end = sql.infix(">=", sql.call("len", trail), sql.number(MAX_DEPTH))
    too_deep = sql.infix("AND", at_the_end, sql.infix(">", sql.call("len", deeper), sql.number(0)))
    checked = sql.case(too_deep, failure(TOO_DEEP, place, 0), deeper)
    item = sql.call("from_json", sql.column("node"), sql.text(node.structure()))
    return sql.query(
        f"(WITH RECURSIVE {walk}(node, trail) AS (SELECT UNNEST(", first, "), UNNEST(", trails, ") UNION ALL ",
        "SELECT UNNEST(inside), UNNEST(", further, ") FROM (SELECT ", checked, " AS inside, trail FROM (SELECT ", item,
        f" AS item, trail FROM {walk}) AS {walk})) "  # noqa: S608
        f"SELECT coalesce(list(node ORDER BY trail), []) FROM {walk})",
    )  # fmt: skip


def _positions(items: Expression) -> Expression:
    return sql.call("range", sql.call("len", items))


def _concat(values: list[Value], fresh: Callable[[], Parameter]) -> Expression:
    if not values:
        return _NO_ITEMS
    lists = [sql.call("coalesce", as_list(value, fresh()), sql.listing()) for value in values]
    return lists[0] if len(lists) == 1 else sql.call("list_concat", *lists)


def _goes_deeper(node: Node, place: Place) -> None:
    """Refuse ``$this``, ``where(…)`` alone and the like: the first step names an element."""
    while isinstance(node, Member | Call | Index):
        source = node.source
        if source is None:
            break
        node = source
    if not isinstance(node, Member) and not (isinstance(node, Call) and node.name == "extension"):
        raise view_error("REPEAT", place, "a path of a repeat starts with the name of an element")
