"""A backup of a node that rests: one archive, its owner's alone, with all that the node needs to start again.

A node's directory is not all: its settings name the certificate, keys of others and folders of components that lie
elsewhere. They are in the archive too, each by its absolute path, so that ``tar -xzpf FILE -C /`` restores the node on
an empty machine. Cohorts and sockets are not: they belong to visits, which end when the node stops. A database of its
own server is not either, and is named.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from connector.settings import NodeFiles, NodeSettings
from vht_federate.errors import InputError
from vht_federate.files import flush_to_disk, sync

__all__ = ["Backup", "back_up"]

ALREADY_PACKED = 1  # Parquet is most of it: a higher level costs minutes for little


@dataclass(frozen=True)
class Backup:
    """``beside``: what of it lies outside the node's directory. ``database``: an address where one is left out."""

    archive: Path
    files: int
    beside: tuple[Path, ...]
    database: str | None


def back_up(settings: NodeSettings, files: NodeFiles, archive: Path) -> Backup:
    """Write ``archive`` (mode 0600) of a node that rests: see to that before.

    Raises InputError VHT-INPUT-EXISTS, and VHT-INPUT-FILE for a file that the settings name and that is not there, or
    an archive inside the node's own directory.
    """
    state, archive = files.state.resolve(), archive.absolute()
    if archive.resolve().is_relative_to(state):
        raise InputError("a backup lies outside of what it holds", code="VHT-INPUT-FILE")
    beside = tuple(path for path in _named(settings) if not path.resolve().is_relative_to(state))
    for path in beside:
        if not path.exists():
            raise InputError(f"node.toml names {path}, which is not there", code="VHT-INPUT-FILE")
    members = [*_kept(files, state), *(file for path in beside for file in _below(path))]
    try:
        descriptor = os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise InputError(f"{archive} exists", code="VHT-INPUT-EXISTS") from error
    try:
        with os.fdopen(descriptor, "wb") as out:
            with tarfile.open(fileobj=out, mode="w:gz", compresslevel=ALREADY_PACKED, dereference=True) as tar:
                for member in members:
                    tar.add(member, arcname=str(member.absolute()).lstrip("/"), recursive=False)
            flush_to_disk(out)
    except BaseException:
        archive.unlink(missing_ok=True)
        raise
    sync(archive.parent)
    return Backup(archive, sum(member.is_file() for member in members), beside, settings.database_url)


def _named(settings: NodeSettings) -> list[Path]:
    """Files and folders that ``node.toml`` names."""
    named = [settings.certificate, settings.key, settings.ca, *settings.component_paths]
    return list(dict.fromkeys([*named, settings.coordinator.ca] if settings.coordinator else named))


def _kept(files: NodeFiles, state: Path) -> Iterator[Path]:
    """The directory without what belongs to a running node."""
    passing = {files.visits.name, files.pid.name, files.run_dir.name}
    yield state
    for path in sorted(state.iterdir()):
        if path.name not in passing:
            yield from _below(path)


def _below(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir():
        yield from (inner for inner in sorted(path.rglob("*")) if inner.is_file() or inner.is_dir())
