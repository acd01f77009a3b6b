"""A file that holds one FHIR Bundle, as numbered entries: each once, as its resource or as the reason why not.

A Bundle, plain, gzip or zstd, is one JSON value and is read whole, so its size is bounded. Within one, ``fullUrl`` is
how entries refer to each other before a server gave them ids (FHIR R4, 2.36.4.1): a reference to a Patient entry
becomes its id.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from connector.fhir.json_depth import parsed_in_parts, written
from connector.fhir.ndjson import Line, chunks
from connector.fhir.typed_elements import Quarantine
from vht_federate.domain.export_files import BYTE_ORDER_MARK

__all__ = ["BUNDLE_LIMIT", "is_fhir", "read_bundle"]

BUNDLE_LIMIT = 64 << 20  # bytes, decoded; orjson's tree takes about ten times as much
_BEGINS = re.compile(rb'\s*\{\s*"resourceType"\s*:')
_WORD = b'"resourceType"'
TOO_LONG = "bundle-too-long"
TYPES = frozenset({"collection", "searchset", "transaction", "batch", "batch-response", "transaction-response"})


def is_fhir(path: Path, *, limit: int = BUNDLE_LIMIT) -> bool:
    """Does this JSON file hold a resource? Others may lie beside an export, and are none of ours.

    Of what cannot be parsed the word alone decides, and what cannot be read is named in the account.
    """
    content, fault = _whole(path, limit, enough=_BEGINS)
    if _BEGINS.match(content):
        return True
    if fault:
        return fault != TOO_LONG or _says_resource(path)
    try:
        document = parsed_in_parts(content)
    except Quarantine:
        return _WORD in content
    return any(
        type(item) is dict and "resourceType" in item for item in (document if type(document) is list else [document])
    )


def _whole(path: Path, limit: int, *, enough: re.Pattern[bytes] | None = None) -> tuple[bytes, str | None]:
    """The decoded bytes of a file, and what broke or was too long; no more of them than begin with ``enough``."""
    parts: list[bytes] = []
    size = 0
    for chunk, fault in chunks(path):
        size += len(chunk)
        if fault or size > limit:
            return b"".join(parts), fault or TOO_LONG
        parts.append(chunk)
        if enough and len(parts) == 1 and enough.match(chunk):
            break
    return b"".join(parts), None


def _says_resource(path: Path) -> bool:
    """Does the word occur? In the memory of one piece."""
    rest = b""
    for chunk, fault in chunks(path):
        if fault or _WORD in rest + chunk:
            return True
        rest = chunk[-len(_WORD) :]
    return False


def read_bundle(path: Path, *, limit: int = BUNDLE_LIMIT) -> Iterator[Line]:
    """Entries of the Bundle in ``path``, counted from 1; an empty Bundle has none.

    Faults: ``malformed-json``, ``not-a-bundle`` (another resource, or a type that carries no data of patients),
    ``bundle-too-long``, ``no-resource`` (an entry without one, such as a deletion), and those of ``read_lines`` for
    a file that cannot be read to its end.
    """
    content, fault = _whole(path, limit)
    if fault:
        yield Line(1, fault=fault)
        return
    try:
        bundle = parsed_in_parts(content.removeprefix(BYTE_ORDER_MARK))
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
    references = {}
    for entry in entries:
        resource = entry.get("resource") if type(entry) is dict else None
        if type(resource) is dict and resource.get("resourceType") == "Patient":
            address, patient_id = entry.get("fullUrl"), resource.get("id")
            if type(address) is str and type(patient_id) is str:
                references[address] = f"Patient/{patient_id}"
    return references


def _resolve(resource: dict[str, Any], patients: dict[str, str]) -> None:
    subject = resource.get("subject")
    if type(subject) is dict and type(subject.get("reference")) is str:
        subject["reference"] = patients.get(subject["reference"], subject["reference"])
