"""Elements that are there without a value: FHIR's JSON keeps what a primitive has beside its value under ``_name``.

FHIR R4, json.html#primitive: ``birthDate`` may be absent and ``_birthDate`` say why; a null in ``given`` keeps the
place of a name that has extensions alone. FHIRPath sees an element in either case: ``exists()``, ``count()``,
``first()``, positions and ``forEach`` go by elements, columns and operators by values. ``_name`` is read where elements
are asked for, and nowhere else.
"""

from collections.abc import Callable

from connector.fhir.r4.elements import EMPTY, Element
from connector.views.sql import building as sql
from connector.views.sql.expressions import Expression, Parameter
from connector.views.sql.values import Origin, Value, as_list, member

__all__ = ["beside", "elements", "is_there"]

_Fresh = Callable[[], Parameter]


def beside(origin: Origin, fresh: _Fresh) -> Value:
    """What stands beside a primitive: its id and extensions, an item for each of its own where it repeats."""
    return member(origin.parent, _beside(origin.element), fresh())


def is_there(value: Value, fresh: _Fresh) -> Expression:
    """Is there any element? True or false, never NULL."""
    if value.type == EMPTY:
        return sql.FALSE
    if value.root:
        return sql.TRUE if value.expression is sql.TRUE else sql.call("coalesce", value.expression, sql.FALSE)
    if value.many:
        length = sql.call("coalesce", sql.call("len", elements(value, fresh)), sql.number(0))
        return sql.infix(">", length, sql.number(0))
    if value.there is not None:
        return value.there if value.there is sql.TRUE else sql.call("coalesce", value.there, sql.FALSE)
    if value.origin is not None:
        return sql.infix("OR", sql.present(value.expression), sql.present(beside(value.origin, fresh).expression))
    return sql.present(value.expression)


def elements(value: Value, fresh: _Fresh) -> Expression:
    """The elements in their places, as a list of their values: NULL for one without; may be NULL itself when empty."""
    if not value.many and (value.origin is not None or value.there is not None):
        return sql.case(is_there(value, fresh), sql.listing(value.expression), sql.listing())
    if not value.many or value.origin is None:
        return as_list(value, fresh())
    parent, element = value.origin.parent, value.origin.element
    if not parent.many:
        return _padded(value.expression, beside(value.origin, fresh).expression, fresh)
    item = fresh()
    its = member(parent.one(item), element, fresh())
    if element.many:
        padded = _padded(its.expression, member(parent.one(item), _beside(element), fresh()).expression, fresh)
        return sql.call("flatten", sql.mapping(parent.expression, item, padded))
    owner = fresh()
    with_either = is_there(member(parent.one(owner), element, fresh()), fresh)
    return sql.mapping(sql.keeping(parent.expression, owner, with_either), item, its.expression)


def _beside(element: Element) -> Element:
    return Element(f"_{element.name}", "Element", element.many)


def _padded(items: Expression, their_beside: Expression, fresh: _Fresh) -> Expression:
    """``items`` with a NULL for each element that has a place beside them only."""
    return sql.macro_call("vht_padded", fresh(), items, their_beside, light=True)
