"""What lies in a folder that is taken in: the files that are read, and all else by name with the reason why not."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from connector.fhir.bundles import is_fhir, read_bundle
from connector.fhir.ndjson import Line, read_lines
from vht_federate.domain.export_files import is_debris, is_lines, may_be_bundle

__all__ = ["Folder", "Ignored", "look_into", "read_file"]


@dataclass(frozen=True)
class Ignored:
    """An entry that is not read. ``reason``: ``system-file``, ``other-ending``, ``not-fhir``, ``subfolder``,
    ``no-file``; of a view ``other-type`` as well."""

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
    if is_debris(path.name):
        return "system-file"
    if path.is_dir():
        return "subfolder"
    if not path.is_file():
        return "no-file"
    if may_be_bundle(path.name):
        return None if is_fhir(path) else "not-fhir"
    return None if is_lines(path.name) else "other-ending"


def read_file(path: Path) -> Iterator[Line]:
    """The lines of a file, or the entries of its Bundle, by its ending."""
    return read_bundle(path) if may_be_bundle(path.name) else read_lines(path)
