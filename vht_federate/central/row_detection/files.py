"""Does a file look like rows of patients? Asked of every file of a publication outside its synthetic cohort.

A look, not a proof: evidence says where a file comes from; this refuses what should never have been sent, also where
somebody signed it by mistake. Who wants to hide rows in a signed model can; who sends them by mistake, in any usual
form, cannot. Messages name the file, never its content. Every look is bounded in memory: sizes come first.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from vht_federate.central.row_detection.json_documents import look_at_json, parsed
from vht_federate.central.row_detection.tensors import look_at_tensors
from vht_federate.central.row_detection.texts import holds_table
from vht_federate.errors import PublicationError

__all__ = ["look_at_heads", "look_for_rows"]

_CONTAINERS = {
    b"PAR1": "Parquet",
    b"SQLite format 3": "SQLite",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"ARROW1": "Arrow",
    b"\x93NUMPY": "NumPy",
    b"\x80\x04": "pickle",
    b"\x80\x05": "pickle",
    b"\x89HDF": "HDF5",
}
_MIB = 1 << 20
_HEAD = 1 << 13
_COHORT = r"cohort/(data\.(csv|parquet)|fhir/.*)"  # judged cell by cell in cohort_rows
_NODE = r"[a-z0-9][a-z0-9-]{0,63}"
_OUTPUT = rf"outputs/[a-z]{{1,32}}-[1-9]\d{{0,3}}/{_NODE}\.(json|safetensors)"  # what a node noised and released
_LARGEST = (  # the first pattern that fits a name says how many bytes it may have
    (_COHORT, 256 * _MIB),
    (r"outputs/.*\.json", _MIB // 4),
    (r"outputs/.*", 64 * _MIB),
    (r".*\.safetensors", 256 * _MIB),
    (rf"nodes/{_NODE}\.json", 16 * _MIB),
    (r"run\.json|release/[^/]+/provenance\.json", 2 * _MIB),
    (r".*\.(json|md)", 4 * _MIB),
    (r".*", _MIB),
)


def look_at_heads(folder: Path) -> None:
    """What can be told without a signature and without reading: sizes, containers, and NDJSON by its first lines.

    Raises PublicationError VHT-PUBLICATION-SIZE or -ROWS.
    """
    for name, path in _files(folder):
        largest = next(size for pattern, size in _LARGEST if re.fullmatch(pattern, name))
        if path.stat().st_size > largest:
            raise PublicationError(f"{name} has more than {largest} bytes", code="VHT-PUBLICATION-SIZE", hint=_HINT)
        if name.startswith("outputs/") and not re.fullmatch(_OUTPUT, name):
            raise _rows(name, "is not named as a node's reply")
        if not re.fullmatch(_COHORT, name):
            _look_at_head(name, path)


def look_for_rows(folder: Path) -> None:
    """Raises PublicationError VHT-PUBLICATION-SIZE, -ROWS or -PERSONAL naming the first such file.

    The files that a synthetic cohort consists of (``cohort/``…) are judged by ``cohort_rows`` instead; anything else
    in its folder is judged here.
    """
    look_at_heads(folder)
    for name, path in _files(folder):
        if re.fullmatch(_COHORT, name):
            continue
        if name.endswith(".safetensors"):
            reason = look_at_tensors(path, weights=name.startswith("release/"), reply=name.startswith("outputs/"))
        else:
            reason = _look_at_text(name, path)
        if reason is not None:
            raise _rows(name, reason)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _look_at_head(name: str, path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for magic, kind in _CONTAINERS.items():
        if head.startswith(magic):
            raise _rows(name, f"is a {kind} file")
    lines = head.decode("utf-8", "replace").splitlines()
    if len([line for line in lines if line.startswith("{") and parsed(line) is not None]) >= 2:
        raise _rows(name, "is NDJSON")


def _look_at_text(name: str, path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return "is neither text nor safetensors"
    objects = [line for line in text.splitlines()[:50] if line.startswith("{") and parsed(line) is not None]
    if len(objects) >= 2:
        return "is NDJSON"
    finding = look_at_json(text, signed_by_nodes=name.startswith(("nodes/", "outputs/")))
    if finding is None:
        return "holds a table of numbers, row by row" if holds_table(text) else None
    if finding.personal:
        raise PublicationError(
            f"{name} holds elements that describe a person", code="VHT-PUBLICATION-PERSONAL", hint=_HINT
        )
    return finding.rows


_HINT = "the platform takes released components and synthetic cohorts; rows of patients never leave a node"


def _rows(name: str, what: str) -> PublicationError:
    return PublicationError(f"{name} {what}: it looks like rows", code="VHT-PUBLICATION-ROWS", hint=_HINT)
