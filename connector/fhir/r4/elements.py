"""FHIR R4's element definitions: which elements a type has, of which type, one or many, required, bound to which codes.

Read once from ``fhir_r4.json`` (written by ``scripts/derive_fhir_elements.py``); nothing here imports the FHIR models.
A type that an element defines for itself is named by the element's path, as FHIR does: ``Observation.component``.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "EMPTY",
    "Choice",
    "Element",
    "element",
    "elements",
    "is_attribute",
    "is_primitive",
    "is_resource",
    "is_type",
    "kind",
]

EMPTY = "empty"
"""The type of what is always the empty collection."""

_KINDS = {
    "boolean": "boolean",
    "integer": "integer",
    "integer64": "integer",
    "positiveInt": "integer",
    "unsignedInt": "integer",
    "decimal": "decimal",
    "date": "date",
    "dateTime": "date",
    "instant": "date",
    "time": "time",
    **dict.fromkeys(
        ("base64Binary", "canonical", "code", "id", "markdown", "oid", "string", "uri", "url", "uuid", "xhtml"),
        "string",
    ),
}


@dataclass(frozen=True)
class Element:
    """One JSON property of a type. ``targets`` are the types a reference may point at; none means any. ``codes`` is
    the closed set that a required binding names."""

    name: str
    type: str
    many: bool
    targets: tuple[str, ...] = ()
    required: bool = False
    codes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """``value[x]``: at most one of ``options`` is present, each under its own JSON property."""

    name: str
    options: Mapping[str, Element]
    required: bool = False


def kind(type_name: str) -> str:
    """What a value of this type computes as: boolean, integer, decimal, date, time, string; ``complex``; ``empty``."""
    return EMPTY if type_name == EMPTY else _KINDS.get(type_name, "complex")


def is_attribute(element: Element) -> bool:
    """``id`` and an Extension's ``url`` are attributes in XML: nothing stands beside their value (2.6.2.3)."""
    return element.name == "id" or (element.name, element.type, element.required) == ("url", "uri", True)


def is_primitive(type_name: str) -> bool:
    return type_name in _KINDS


@functools.cache
def _definitions() -> dict[str, dict[str, str]]:
    types: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "fhir_r4.json").read_text())
    return types


def is_type(type_name: str) -> bool:
    return is_primitive(type_name) or type_name in _definitions()


def is_resource(type_name: str) -> bool:
    """True of the types that stand alone in NDJSON."""
    ancestor = type_name
    while ancestor and ancestor != "Resource":
        ancestor = _definitions().get(ancestor, {}).get("", "")
    return ancestor == "Resource" and type_name not in {"Resource", "DomainResource"}


@functools.cache
def element(type_name: str, name: str) -> Element | Choice | None:
    """The element ``name`` of a complex type or resource, own or inherited; None where there is none."""
    definition = _definitions().get(type_name)
    if definition is None or not name:
        return None
    if name == "resourceType" and is_resource(type_name):
        return Element(name, "code", False)
    if f"{name}[x]" in definition:
        return _choice(name, definition[f"{name}[x]"])
    if name not in definition:
        return element(definition[""], name)
    return _element(name, definition[name])


def _element(name: str, notation: str) -> Element:
    required, notation = notation.endswith("!"), notation.removesuffix("!")
    many, notation = notation.endswith("*"), notation.removesuffix("*")
    base, _, codes = notation.partition("=")
    if codes:
        return Element(name, base, many, (), required, tuple(codes.split("|")))
    base, _, targets = notation.partition("<")
    return Element(name, base, many, tuple(targets.rstrip(">").split("|")) if targets else (), required)


def _choice(name: str, notation: str) -> Choice:
    types = notation.removesuffix("!").split("|")
    options = {base: Element(name + base[0].upper() + base[1:], base, False) for base in types}
    return Choice(name, options, notation.endswith("!"))


@functools.cache
def elements(type_name: str) -> tuple[Element | Choice, ...]:
    """Every element of a complex type or resource, its own and inherited ones."""
    names: dict[str, None] = {}
    above = type_name
    while above:
        definition = _definitions()[above]
        names.update(dict.fromkeys(name.removesuffix("[x]") for name in definition if name))
        above = definition[""]
    return tuple(found for name in names if (found := element(type_name, name)) is not None)
