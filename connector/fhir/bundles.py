"""A file that holds one FHIR Bundle, as numbered entries: each once, as its resource or as the reason why not.

A Bundle, plain, gzip or zstd, is one JSON value and is read whole, so its size is bounded. What its entries are called
and how they refer to each other is resolved before they are read (``bundle_references``).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from connector.fhir.bundle_references import BundleReferences
from connector.fhir.json_depth import parsed_in_parts, written
from connector.fhir.ndjson import UTF_16, Line, chunks, encoding_fault, without_mark
from connector.fhir.r4.conformance import has_duplicate_key
from connector.fhir.typed_elements import Quarantine
from vht_federate.domain.export_files import BYTE_ORDER_MARK

__all__ = ["BUNDLE_LIMIT", "TYPES", "is_fhir", "read_bundle"]

BUNDLE_LIMIT = 64 << 20  # bytes, decoded; orjson's tree takes about ten times as much
_BEGINS = re.compile(rb'\s*\{\s*"resourceType"\s*:')
_WORD = b'"resourceType"'
_WIDE_WORDS = tuple('"resourceType"'.encode(f"utf-16-{order}") for order in ("le", "be"))
TOO_LONG = "bundle-too-long"
# All of R4 but ``message``: what its entries mean depends on the event that its header names.
TYPES = frozenset(
    {
        "document",
        "transaction",
        "transaction-response",
        "batch",
        "batch-response",
        "history",
        "searchset",
        "collection",
    }
)


def is_fhir(path: Path, *, limit: int = BUNDLE_LIMIT) -> bool:
    """Does this JSON file hold a resource? Others may lie beside an export, and are none of ours.

    Of what cannot be parsed the word alone decides, and what cannot be read is named in the account.
    """
    content, fault = _whole(path, limit, enough=_BEGINS)
    if _BEGINS.match(content):
        return True
    if fault == UTF_16:
        return any(word in content for word in _WIDE_WORDS)
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
    """The decoded bytes of a file without a byte order mark, and what broke or was too long; no more of them than
    begin with ``enough``."""
    parts: list[bytes] = []
    size = 0
    for chunk, fault in chunks(path):
        size += len(chunk)
        if fault or size > limit:
            return without_mark(b"".join(parts)), fault or TOO_LONG
        parts.append(chunk)
        if enough and len(parts) == 1 and enough.match(without_mark(chunk)):
            break
    content = b"".join(parts)
    return without_mark(content), encoding_fault(content)


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

    Faults: ``malformed-json``, ``utf-16``, ``not-a-bundle`` (another resource), ``bundle-type`` (one that is not
    read), ``bundle-too-long``, ``no-resource`` (an entry without one; of a deletion in a history, ``deletion`` is its
    entry), and those of ``read_lines`` for a file that cannot be read to its end.
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
    if type(bundle) is not dict or bundle.get("resourceType") != "Bundle":
        yield Line(1, fault="not-a-bundle")
        return
    if bundle.get("type") not in TYPES:
        yield Line(1, fault="bundle-type")
        return
    entries = bundle.get("entry") or []
    if type(entries) is not list:
        yield Line(1, fault="malformed-json")
        return
    duplicates = _with_duplicate_keys(content, bundle)
    if duplicates is None:
        yield Line(1, fault="duplicate-key")
        return
    references, is_history = BundleReferences(entries), bundle["type"] == "history"
    for number, entry in enumerate(entries, 1):
        if number in duplicates:
            yield Line(number, fault="duplicate-key")
            continue
        resource = entry.get("resource") if type(entry) is dict else None
        if type(resource) is not dict:
            deletion = _deletion(bundle, entry) if is_history else None
            yield Line(number, fault="no-resource", deletion=deletion)
            continue
        references.resolve(entry)
        yield Line(number, written(resource))


class _Entries(msgspec.Struct):
    entry: list[msgspec.Raw] = []


def _with_duplicate_keys(content: bytes, bundle: Any) -> frozenset[int] | None:
    """The numbers of entries in which an object has two members of one name, of which parsing kept the last; None where
    that is so outside of them."""
    if content.count(b'"') == written(bundle).count(b'"') and b"\\u" not in content:
        return frozenset()
    try:
        raw = msgspec.json.decode(content, type=_Entries).entry
    except (msgspec.DecodeError, RecursionError):  # what is nested so deep is set aside by itself
        return frozenset()
    numbers = frozenset(number for number, entry in enumerate(raw, 1) if has_duplicate_key(bytes(entry)))
    return numbers if numbers or not has_duplicate_key(content) else None


def _deletion(bundle: dict[str, Any], entry: Any) -> bytes | None:
    """An entry of a history that tells of a deletion: it was deleted when the Bundle was made, at the latest."""
    request = entry.get("request") if type(entry) is dict else None
    if type(request) is not dict or request.get("method") != "DELETE":
        return None
    meta, response = bundle.get("meta"), entry.get("response")
    made = bundle.get("timestamp") or (meta.get("lastUpdated") if type(meta) is dict else None)
    told = {"lastModified": made} | (response if type(response) is dict else {})
    return written({"request": request, "response": told})
