"""Random FHIR R4 resources made from the element definitions, and random faults put into them."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

from connector.fhir.r4.elements import Choice, Element, elements, is_attribute, is_primitive, is_resource

__all__ = ["FAULTS", "faulty", "resource"]

Node = dict[str, Any]
RIGHT: dict[str, tuple[Any, ...]] = {
    "base64Binary": ("aGVsbG8=", "AAAA BBBB"),
    "boolean": (True, False),
    "canonical": ("http://example.org/fhir/StructureDefinition/a|1.0",),
    "code": ("a", "final", "two words"),
    "date": ("1950", "1950-03", "1950-03-04", "2000-02-29"),
    "dateTime": ("2011", "2011-10", "2011-10-14", "2011-10-14T23:37:54+02:00", "2011-10-14T23:37:54.5Z"),
    "decimal": (0, 1.5, -2.25, 100, 1e-7),
    "id": ("a", "A-1.b"),
    "instant": ("2011-10-14T23:37:54.530+00:00", "2020-01-01T00:00:00Z"),
    "integer": (0, -1, 2**31 - 1),
    "markdown": ("# a\nb",),
    "oid": ("urn:oid:1.2.840",),
    "positiveInt": (1, 7),
    "string": ("a", " b ", "ü\tc", 'with "quotes" in it'),
    "time": ("10:00:00", "23:59:59.5"),
    "unsignedInt": (0, 3),
    "uri": ("http://example.org/a", "urn:uuid:0b7a"),
    "url": ("https://example.org",),
    "uuid": ("urn:uuid:c757873d-ec9a-4326-a141-556f43239520",),
    "xhtml": ('<div xmlns="http://www.w3.org/1999/xhtml"><p>a</p></div>',),
}
WRONG: dict[str, tuple[Any, ...]] = {
    "boolean": ("true", 1, []),
    "code": (" a", "a  b", "", 3),
    "date": ("1950-13", "1950-02-30", "04.03.1950", 1950, "1950-03-04T10:00:00Z"),
    "dateTime": ("2011-10-14T23:37", "2011-10-14T23:37:54", "2011-02-30", "2011-10-14 23:37:54Z", 2011),
    "decimal": ("1.5", True, {}),
    "id": ("a b", "x" * 65, ""),
    "instant": ("2011-10-14", "2011-10-14T23:37:54", 5),
    "integer": ("1", 1.5, True),
    "positiveInt": (0, -1, "1"),
    "unsignedInt": (-1, "0"),
    "string": (3, True, [], {}),
    "uri": ("a b", "", 3),
    "time": ("25:00:00", "10:00", 10),
}
DEEPEST = 3
_LEFT_OUT = frozenset({"contained", "modifierExtension", "implicitRules"})


def resource(draw: random.Random, kind: str) -> Node:
    """One that keeps R4, with a random choice of its elements."""
    return {"resourceType": kind, "id": "r1"} | _node(draw, kind, 0)


def _node(draw: random.Random, type_name: str, depth: int) -> Node:
    node: Node = {}
    for item in elements(type_name):
        if item.name in _LEFT_OUT or (is_resource(type_name) and item.name == "id"):
            continue
        often = 0.35 if depth == 0 else 0.25 if depth < DEEPEST else 0.0
        if not item.required and draw.random() > often:
            continue
        element = draw.choice(list(item.options.values())) if isinstance(item, Choice) else item
        if item.name == "extension" and depth >= DEEPEST:
            continue
        node[element.name] = _values(draw, element, depth)
        alone = element.many or is_attribute(element) or type_name == "Extension"  # there the models know no extension
        if is_primitive(element.type) and not alone and draw.random() < 0.05:
            node[f"_{element.name}"] = {"extension": [{"url": "http://example.org/e", "valueString": "a"}]}
    if type_name == "Extension" and not any(key.startswith("value") for key in node):
        node["valueString"] = "a"
        node.pop("extension", None)
    if not node:
        node["id"] = "i"
    if type_name == "Observation" and any(key.startswith("value") for key in node):
        node.pop("dataAbsentReason", None)
        node.pop("component", None)
    return node


def _values(draw: random.Random, element: Element, depth: int) -> Any:
    if element.many:
        return [_value(draw, element, depth) for _ in range(draw.choice((1, 1, 2)))]
    return _value(draw, element, depth)


def _value(draw: random.Random, element: Element, depth: int) -> Any:
    if element.codes:
        return draw.choice(element.codes)
    if is_primitive(element.type):
        return draw.choice(RIGHT[element.type])
    return _node(draw, element.type, depth + 1)


# --- faults ---------------------------------------------------------------------------------------------------------

Place = tuple[Node, str, str]  # an object, its type, its path


def _places(node: Node, type_name: str, path: str) -> Iterator[Place]:
    yield node, type_name, path
    for item in elements(type_name):
        for element in item.options.values() if isinstance(item, Choice) else (item,):
            value = node.get(element.name)
            if is_primitive(element.type) or value is None:
                continue
            for inner in value if element.many else [value]:
                yield from _places(inner, element.type, f"{path}.{element.name}")


def _present(node: Node, type_name: str) -> list[tuple[Element | Choice, Element]]:
    return [
        (item, element)
        for item in elements(type_name)
        for element in (item.options.values() if isinstance(item, Choice) else (item,))
        if element.name in node
    ]


def _without_required(draw: random.Random, node: Node, type_name: str) -> bool:
    required = [element for item, element in _present(node, type_name) if item.required]
    if not required:
        return False
    element = draw.choice(required)
    node.pop(element.name)
    node.pop(f"_{element.name}", None)
    return True


def _unknown(draw: random.Random, node: Node, type_name: str) -> bool:
    node[draw.choice(("foo", "valueSecret", "Status"))] = "x"
    return True


def _null(draw: random.Random, node: Node, type_name: str) -> bool:
    present = _present(node, type_name)
    if not present:
        return False
    _, element = draw.choice(present)
    node[element.name] = [None] if element.many else None
    node.pop(f"_{element.name}", None)
    return True


def _cardinality(draw: random.Random, node: Node, type_name: str) -> bool:
    present = _present(node, type_name)
    if not present:
        return False
    _, element = draw.choice(present)
    node[element.name] = node[element.name][0] if element.many else [node[element.name]]
    return True


def _empty(draw: random.Random, node: Node, type_name: str) -> bool:
    present = [element for _, element in _present(node, type_name) if element.many or not is_primitive(element.type)]
    if not present:
        return False
    element = draw.choice(present)
    node[element.name] = [] if element.many else {}
    return True


def _wrong_value(draw: random.Random, node: Node, type_name: str) -> bool:
    present = [element for _, element in _present(node, type_name) if element.type in WRONG]
    if not present:
        return False
    element = draw.choice(present)
    wrong = draw.choice(WRONG[element.type])
    node[element.name] = [wrong] if element.many else wrong
    node.pop(f"_{element.name}", None)
    return True


def _unbound(draw: random.Random, node: Node, type_name: str) -> bool:
    present = [element for _, element in _present(node, type_name) if element.codes]
    if not present:
        return False
    element = draw.choice(present)
    node[element.name] = ["not-in-the-set"] if element.many else "not-in-the-set"
    return True


def _second_choice(draw: random.Random, node: Node, type_name: str) -> bool:
    chosen = [(item, element) for item, element in _present(node, type_name) if isinstance(item, Choice)]
    if not chosen:
        return False
    item, element = draw.choice(chosen)
    assert isinstance(item, Choice)
    other = draw.choice([option for option in item.options.values() if option.name != element.name])
    node[other.name] = _value(draw, other, DEEPEST)
    return True


FAULTS: dict[str, Callable[[random.Random, Node, str], bool]] = {
    "missing": _without_required,
    "unknown-element": _unknown,
    "null": _null,
    "type": _cardinality,
    "empty": _empty,
    "format": _wrong_value,
    "code": _unbound,
    "choice": _second_choice,
}


def faulty(draw: random.Random, valid: Node, fault: str) -> Node | None:
    """A copy of ``valid`` with one fault of a kind at a random place; None where it has no place for it."""
    changed = copy.deepcopy(valid)
    places = list(_places(changed, valid["resourceType"], valid["resourceType"]))
    draw.shuffle(places)
    for node, type_name, _ in places:
        if FAULTS[fault](draw, node, type_name):
            return changed
    return None
