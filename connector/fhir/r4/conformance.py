"""Does a resource keep what R4 demands? Asked of the parsed JSON, element by element, from the element definitions.

Cardinality, choice, JSON types, required bindings, formats of primitives, nulls (2.6.2), empty elements, and the
invariants obs-6 and obs-7. The answer names the first fault by an element path made of R4's own names, without indices;
an element that R4 does not know is named by its parent alone, because its name comes from the data.

This is the careful way, for what ``connector.fhir.r4.strict`` does not pass at once.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from connector.fhir.r4.elements import Choice, Element, elements, is_attribute, is_primitive, is_resource
from connector.fhir.r4.primitives import is_spelled, json_type

__all__ = ["REASONS", "Fault", "first_fault", "has_duplicate_key"]

REASONS = frozenset(
    {"missing", "type", "format", "code", "choice", "null", "empty", "unknown-element", "duplicate-key", "invariant"}
)
_ANY_RESOURCE = "Resource"
Node = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """``reason`` is one of ``REASONS``."""

    reason: str
    path: str


@dataclass(frozen=True)
class _Rules:
    """Of one type: each JSON property with its element and the choice that it belongs to; what must be present."""

    properties: dict[str, tuple[Element, str | None]]
    required: tuple[tuple[str, tuple[str, ...]], ...]


@cache
def _rules(type_name: str) -> _Rules:
    properties: dict[str, tuple[Element, str | None]] = {}
    required = []
    for item in elements(type_name):
        options = tuple(item.options.values()) if isinstance(item, Choice) else (item,)
        choice = item.name if isinstance(item, Choice) else None
        properties.update({option.name: (option, choice) for option in options})
        if item.required:
            shown = f"{item.name}[x]" if choice else item.name
            required.append((shown, tuple(option.name for option in options)))
    if is_resource(type_name):
        properties["resourceType"] = (Element("resourceType", "code", False), None)
    return _Rules(properties, tuple(required))


def first_fault(resource: Node) -> Fault | None:
    """What is wrong with a resource of a type that R4 knows; None where nothing is."""
    kind = resource.get("resourceType")
    if type(kind) is not str or not is_resource(kind):
        return Fault("missing" if kind is None else "type", "resourceType")
    return next(_faults(resource, kind, kind), None)


def has_duplicate_key(content: bytes) -> bool:
    """Does an object of this JSON have two members of one name (RFC 8259, 4)?"""
    found = False

    def members(pairs: list[tuple[str, Any]]) -> None:
        nonlocal found
        found = found or len({name for name, _ in pairs}) < len(pairs)

    try:
        json.loads(content, object_pairs_hook=members)
    except (ValueError, RecursionError):  # what is not read, or nested too deep, is another's to name
        return False
    return found


def _faults(node: Any, type_name: str, path: str) -> Iterator[Fault]:
    if type(node) is not dict:
        yield Fault("null" if node is None else "type", path)
        return
    if not node:
        yield Fault("empty", path)
        return
    rules = _rules(type_name)
    choices: dict[str, str] = {}
    for key, value in node.items():
        name = key.removeprefix("_")
        if name not in rules.properties:
            yield Fault("unknown-element", path)
            continue
        element, choice = rules.properties[name]
        if choice is not None and choices.setdefault(choice, name) != name:
            yield Fault("choice", f"{path}.{choice}[x]")
        if key == name:
            yield from _property(node, element, value, f"{path}.{name}")
        elif is_primitive(element.type) and name != "resourceType" and not is_attribute(element):
            yield from _beside(node, element, value, f"{path}.{name}")
        else:
            yield Fault("unknown-element", path)
    for shown, options in rules.required:
        if not any(option in node or f"_{option}" in node for option in options):
            yield Fault("missing", f"{path}.{shown}")
    if type_name == "Observation":
        yield from _invariants(node)


def _property(node: Node, element: Element, value: Any, path: str) -> Iterator[Fault]:
    if not element.many:
        yield from _item(element, value, path)
        return
    if type(value) is not list:
        yield Fault("null" if value is None else "type", path)
        return
    if not value:
        yield Fault("empty", path)
    beside = node.get(f"_{element.name}")
    for place, item in enumerate(value):
        if item is None and _at(beside, place) is not None and is_primitive(element.type):
            continue
        yield from _item(element, item, path)


def _at(items: Any, place: int) -> Any:
    return items[place] if type(items) is list and place < len(items) else None


def _item(element: Element, value: Any, path: str) -> Iterator[Fault]:
    if value is None:
        yield Fault("null", path)
    elif element.type == _ANY_RESOURCE:
        yield from _contained(value, path)
    elif not is_primitive(element.type):
        yield from _faults(value, element.type, path)
    elif not isinstance(value, json_type(element.type)) or (type(value) is bool) != (element.type == "boolean"):
        yield Fault("type", path)
    elif element.codes and value not in element.codes:
        yield Fault("code", path)
    elif not is_spelled(element.type, value):
        yield Fault("empty" if value == "" else "format", path)


def _contained(value: Any, path: str) -> Iterator[Fault]:
    kind = value.get("resourceType") if type(value) is dict else None
    if type(kind) is not str or not is_resource(kind):
        yield Fault("null" if value is None else "type", path)
        return
    yield from _faults(value, kind, path)


def _beside(node: Node, element: Element, value: Any, path: str) -> Iterator[Fault]:
    """``_name``: id and extensions of a primitive, or of each in a list of them (2.6.2.3)."""
    if not element.many:
        yield from _faults(value, "Element", path)
        return
    if type(value) is not list:
        yield Fault("null" if value is None else "type", path)
        return
    values = node.get(element.name)
    if not value or (type(values) is list and len(values) != len(value)):
        yield Fault("empty" if not value else "type", path)
    for place, item in enumerate(value):
        if item is not None:
            yield from _faults(item, "Element", path)
        elif _at(values, place) is None:
            yield Fault("null", path)


def _invariants(node: Node) -> Iterator[Fault]:
    """obs-6: a reason for the absence of a value where there is none. obs-7: a component with the code of the whole
    has the value, and the whole has none."""
    valued = any(key.removeprefix("_").startswith("value") for key in node)
    if valued and "dataAbsentReason" in node:
        yield Fault("invariant", "Observation.dataAbsentReason")
    components = node.get("component")
    if valued and type(components) is list:
        whole = _codings(node)
        parts = [coding for component in components if type(component) is dict for coding in _codings(component)]
        if any(coding in whole for coding in parts):
            yield Fault("invariant", "Observation.component.code")


def _codings(node: Node) -> list[Any]:
    concept = node.get("code")
    codings = concept.get("coding") if type(concept) is dict else None
    return codings if type(codings) is list else []
