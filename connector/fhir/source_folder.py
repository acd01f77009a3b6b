"""What lies in a folder that is taken in: the files that are read, and all else by name with the reason why not."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from connector.fhir.bundles import is_fhir, read_bundle
from connector.fhir.ndjson import Line, read_lines

__all__ = ["Folder", "Ignored", "look_into", "read_file"]

PACKED = ("", ".gz", ".zst")
LINES = tuple(f"{kind}{packed}" for kind in (".ndjson", ".jsonl") for packed in PACKED)
BUNDLES = tuple(f".json{packed}" for packed in PACKED)


@dataclass(frozen=True)
class Ignored:
    """An entry that is not read. ``reason``: ``other-ending``, ``not-fhir``, ``subfolder`` or ``no-file``."""

    name: str
    reason: str


@dataclass(frozen=True)
class Folder:
    """Every entry once, in order of name."""

    files: tuple[Path, ...]
    ignored: tuple[Ignored, ...]


def look_into(folder: Path) -> Folder:
    """What lies in ``folder``. Endings count in either case; a ``.json`` is read where it holds a resource."""
    files, ignored = [], []
    for path in sorted(folder.iterdir()):
        reason = _why_not(path)
        if reason:
            ignored.append(Ignored(path.name, reason))
        else:
            files.append(path)
    return Folder(tuple(files), tuple(ignored))


def _why_not(path: Path) -> str | None:
    if path.is_dir():
        return "subfolder"
    if not path.is_file():
        return "no-file"
    name = path.name.lower()
    if name.endswith(BUNDLES):
        return None if is_fhir(path) else "not-fhir"
    return None if name.endswith(LINES) else "other-ending"


def read_file(path: Path) -> Iterator[Line]:
    """The lines of a file, or the entries of its Bundle, by its ending."""
    return read_bundle(path) if path.name.lower().endswith(BUNDLES) else read_lines(path)
