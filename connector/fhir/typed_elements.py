"""Typed reading of FHIR JSON: each element is what R4 says it is, or the line goes to quarantine.

Paths in reasons are built from element names alone, so that no content of a line is ever repeated.
"""

import re
from functools import lru_cache
from typing import Any

from connector.fhir.subject_keys import ID
from vht_federate.domain.references import encounter_id_of, patient_id_of, type_of

__all__ = [
    "Coding",
    "Quarantine",
    "boolean",
    "code",
    "codings",
    "encounter",
    "identifier",
    "member",
    "members",
    "number",
    "subject",
    "text",
]

Node = dict[str, Any]
Coding = tuple[str | None, str]  # system, code

_CODE = re.compile(r"\S(?:\S| (?=\S)){0,255}")  # FHIR code or uri, bounded
_PATIENT_TYPES = ("Patient", "http://hl7.org/fhir/StructureDefinition/Patient")  # Reference.type is a uri


class Quarantine(Exception):
    """This line is not read further: ``reason`` is a stable code, ``path`` an element path without indices."""

    def __init__(self, reason: str, path: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path


def text(node: Node, key: str, where: str) -> str | None:
    value = node.get(key)
    if value is None or type(value) is str:
        return value
    raise Quarantine("type", f"{where}.{key}")


def code(node: Node, key: str, where: str, *, required: bool = False) -> str | None:
    """A FHIR code or uri: no free text, at most 256 characters."""
    value = node.get(key)
    if value is None:
        if required:
            raise Quarantine("missing", f"{where}.{key}")
        return None
    if type(value) is not str:
        raise Quarantine("type", f"{where}.{key}")
    if not _is_code(value):
        raise Quarantine("format", f"{where}.{key}")
    return value


@lru_cache(maxsize=65_536)
def _is_code(value: str) -> bool:
    # few codes come very often
    return _CODE.fullmatch(value) is not None


def boolean(node: Node, key: str, where: str) -> bool | None:
    value = node.get(key)
    if value is None or type(value) is bool:
        return value
    raise Quarantine("type", f"{where}.{key}")


def number(node: Node, key: str, where: str) -> float | None:
    """A FHIR decimal or integer: a JSON number, never a string and never a boolean."""
    value = node.get(key)
    if value is None:
        return None
    if type(value) is int or type(value) is float:
        return float(value)
    raise Quarantine("type", f"{where}.{key}")


def member(node: Node, key: str, where: str) -> Node | None:
    value = node.get(key)
    if value is None or type(value) is dict:
        return value
    raise Quarantine("type", f"{where}.{key}")


def members(node: Node, key: str, where: str) -> list[Node]:
    value = node.get(key)
    if value is None:
        return []
    if type(value) is not list or any(type(item) is not dict for item in value):
        raise Quarantine("type", f"{where}.{key}")
    return value


def identifier(node: Node, where: str) -> str:
    value = text(node, "id", where)
    if value is None:
        raise Quarantine("missing", f"{where}.id")
    if not ID.fullmatch(value):
        raise Quarantine("format", f"{where}.id")
    return value


def subject(node: Node, where: str, *, required: bool = True) -> str:
    """The Patient.id that ``subject`` refers to; ``required``: R4 demands a subject of this type.

    Raises Quarantine, for what R4 allows as ``no-subject``, ``logical-reference``, ``contained-subject`` or
    ``not-a-patient``.
    """
    reference = member(node, "subject", where)
    if reference is None:
        raise Quarantine("missing" if required else "no-subject", f"{where}.subject")
    target = text(reference, "reference", f"{where}.subject")
    patient = patient_id_of(target) if target else None
    if patient is None or (reference.get("type") or "Patient") not in _PATIENT_TYPES:
        raise Quarantine(_no_patient(reference, target, f"{where}.subject"), f"{where}.subject.reference")
    return patient


def _no_patient(reference: Node, target: str | None, where: str) -> str:
    """Why a subject names no patient."""
    named_type = text(reference, "type", where) or (type_of(target) if target else None) or "Patient"
    if named_type not in _PATIENT_TYPES:
        return "not-a-patient"
    if target is None:
        return "logical-reference"
    if target.startswith("#"):
        return "contained-subject"
    return "unresolved" if target.startswith("Patient?") else "reference"


def encounter(node: Node, where: str) -> str | None:
    """The Encounter.id that ``encounter`` refers to, or the whole of a search that stands for it; None where it refers
    to nothing that has one."""
    reference = member(node, "encounter", where)
    target = text(reference, "reference", f"{where}.encounter") if reference else None
    if not target:
        return None
    return encounter_id_of(target) or (target if target.startswith("Encounter?") else None)


def codings(node: Node | None, where: str) -> list[Coding]:
    """Each coding of a CodeableConcept that has a code, in order, each once. Its text and displays are not read."""
    if node is None:
        return []
    distinct: dict[Coding, None] = {}
    for item in members(node, "coding", where):
        code_value = code(item, "code", f"{where}.coding")
        system = code(item, "system", f"{where}.coding")
        if code_value is not None:
            distinct[system, code_value] = None
    return list(distinct)
