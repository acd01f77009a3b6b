"""Does a file look like rows of patients? Asked of every file of a publication outside its synthetic cohort.

A look, not a proof: evidence says where a file comes from; this refuses what should never have been sent, also where
somebody signed it by mistake. Messages name the file, never its content.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vht_federate.errors import PublicationError

__all__ = ["look_for_rows"]

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
_PERSONAL_NAMES = ("family", "given", "birthDate", "deceasedDateTime", "maritalStatus", "photo", "mrn", "ssn")
_PERSONAL = frozenset((*_PERSONAL_NAMES, "telecom", "address", "postalCode", "contact"))
_TABLE_LINES = 20
_TENSOR_ROWS = 1_000
_NUMBER = re.compile(r"-?\d*\.?\d+(e[+-]?\d+)?", re.IGNORECASE)


def look_for_rows(folder: Path, *, cohort: str = "cohort") -> None:
    """Raises PublicationError VHT-PUBLICATION-ROWS or VHT-PUBLICATION-PERSONAL naming the first such file.

    The files that a synthetic cohort consists of (``cohort``/…) are judged by ``cohort_rows`` instead; anything else
    in its folder is judged here.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in (f"{cohort}/data.csv", f"{cohort}/data.parquet") or name.startswith(f"{cohort}/fhir/"):
            continue
        _look(name, path)


def _look(name: str, path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(64)
    for magic, kind in _CONTAINERS.items():
        if head.startswith(magic):
            raise _rows(name, f"is a {kind} file")
    if name.endswith(".safetensors"):
        _look_at_tensors(name, path)
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _rows(name, "is neither text nor safetensors") from error
    _look_at_text(name, text)


def _look_at_text(name: str, text: str) -> None:
    lines = text.splitlines()
    objects = [line for line in lines[:50] if line.startswith("{") and _parsed(line) is not None]
    if len(objects) >= 2:
        raise _rows(name, "is NDJSON")
    parsed = _parsed(text)
    if parsed is not None:
        keys = set(_keys(parsed))
        if "resourceType" in keys:
            raise _rows(name, "holds FHIR resources")
        if keys & _PERSONAL:
            raise PublicationError(
                f"{name} holds elements that describe a person", code="VHT-PUBLICATION-PERSONAL", hint=_HINT
            )
        return
    for separator in (",", ";", "\t", "|"):
        if _is_table(lines, separator):
            raise _rows(name, "holds a table of numbers, row by row")


def _is_table(lines: list[str], separator: str) -> bool:
    """At least ``_TABLE_LINES`` lines running with equally many cells, most of them numbers or empty."""
    run, width = 0, 0
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split(separator)]
        numbers = sum(not cell or _NUMBER.fullmatch(cell) is not None for cell in cells)
        fits = len(cells) >= 3 and numbers * 2 >= len(cells)
        run = run + 1 if fits and len(cells) == width else int(fits)
        width = len(cells)
        if run >= _TABLE_LINES:
            return True
    return False


def _look_at_tensors(name: str, path: Path) -> None:
    """A released model or table is small; a tensor of many short rows is a table of people."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise _rows(name, "is not safetensors") from error
    if any(len(shape) == 2 and max(shape) >= _TENSOR_ROWS and min(shape) <= 200 for shape in shapes):
        raise _rows(name, "holds a tensor with the shape of a table of rows")


def _parsed(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict | list) else None


def _keys(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


_HINT = "the platform takes released components and synthetic cohorts; rows of patients never leave a node"


def _rows(name: str, what: str) -> PublicationError:
    return PublicationError(f"{name} {what}: it looks like rows", code="VHT-PUBLICATION-ROWS", hint=_HINT)
