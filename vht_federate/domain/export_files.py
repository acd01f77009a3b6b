"""Which files of an export hold FHIR, by their names: the one rule for intake, for views and for the split.

Endings count in either case, and a name may say anything before them.
"""

from pathlib import PurePosixPath

__all__ = ["BUNDLES", "BYTE_ORDER_MARK", "LINES", "is_debris", "is_lines", "may_be_bundle"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What a file may begin with, and no parser of JSON needs to take (RFC 8259, section 8.1)."""
PACKED = ("", ".gz", ".zst")
LINES = tuple(f"{kind}{packed}" for kind in (".ndjson", ".jsonl") for packed in PACKED)
BUNDLES = tuple(f".json{packed}" for packed in PACKED)
_DEBRIS = frozenset({".ds_store", "__macosx", ".spotlight-v100", ".trashes", ".fseventsd", "thumbs.db", "ehthumbs.db",
                     "desktop.ini", "$recycle.bin", "system volume information"})  # fmt: skip


def is_lines(name: str) -> bool:
    """NDJSON, one resource a line."""
    return name.lower().endswith(LINES)


def may_be_bundle(name: str) -> bool:
    """One JSON value: a Bundle, or something that is no FHIR."""
    return name.lower().endswith(BUNDLES)


def is_debris(path: str) -> bool:
    """What macOS and Windows leave beside or above files, AppleDouble's ``._name`` among it: never data."""
    parts = PurePosixPath(path).parts
    return any(part.startswith("._") or part.lower() in _DEBRIS for part in parts)
