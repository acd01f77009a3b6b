"""A file that holds one FHIR Bundle, as numbered entries: each once, as its resource or as the reason why not.

A Bundle is one JSON value and is read whole, so its size is bounded. Within one, ``fullUrl`` is how entries refer to
each other before a server gave them ids (FHIR R4, 2.36.4.1): a reference to a Patient entry becomes its id.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from connector.fhir.elements import Quarantine
from connector.fhir.lines import Line
from connector.fhir.nesting import parsed_in_parts, written

__all__ = ["BUNDLE_LIMIT", "is_fhir", "read_bundle"]

BUNDLE_LIMIT = 64 << 20  # bytes; orjson's tree takes about ten times as much
PEEK = 4096
TYPES = frozenset({"collection", "searchset", "transaction", "batch", "batch-response", "transaction-response"})


def is_fhir(path: Path) -> bool:
    """Does this JSON file begin like a resource? Others may lie beside an export, and are none of ours."""
    try:
        with path.open("rb") as file:
            return b'"resourceType"' in file.read(PEEK)
    except OSError:
        return True  # to be named in the account


def read_bundle(path: Path, *, limit: int = BUNDLE_LIMIT) -> Iterator[Line]:
    """Entries of the Bundle in ``path``, counted from 1; an empty Bundle has none.

    Faults: ``malformed-json``, ``not-a-bundle`` (another resource, or a type that carries no data of patients),
    ``bundle-too-long``, ``no-resource`` (an entry without one, such as a deletion), ``unreadable-file``.
    """
    try:
        if path.stat().st_size > limit:
            yield Line(1, fault="bundle-too-long")
            return
        bundle = parsed_in_parts(path.read_bytes())
    except OSError:
        yield Line(1, fault="unreadable-file")
        return
    except Quarantine as verdict:
        yield Line(1, fault=verdict.reason)
        return
    if type(bundle) is not dict or bundle.get("resourceType") != "Bundle" or bundle.get("type") not in TYPES:
        yield Line(1, fault="not-a-bundle")
        return
    entries = bundle.get("entry") or []
    if type(entries) is not list:
        yield Line(1, fault="malformed-json")
        return
    patients = _patients(entries)
    for number, entry in enumerate(entries, 1):
        resource = entry.get("resource") if type(entry) is dict else None
        if type(resource) is not dict:
            yield Line(number, fault="no-resource")
            continue
        _resolve(resource, patients)
        yield Line(number, written(resource))


def _patients(entries: list[Any]) -> dict[str, str]:
    """``fullUrl`` of each Patient entry -> reference by its id."""
    found = {}
    for entry in entries:
        resource = entry.get("resource") if type(entry) is dict else None
        if type(resource) is dict and resource.get("resourceType") == "Patient":
            address, own = entry.get("fullUrl"), resource.get("id")
            if type(address) is str and type(own) is str:
                found[address] = f"Patient/{own}"
    return found


def _resolve(resource: dict[str, Any], patients: dict[str, str]) -> None:
    subject = resource.get("subject")
    if type(subject) is dict and type(subject.get("reference")) is str:
        subject["reference"] = patients.get(subject["reference"], subject["reference"])
