"""Unpack an untrusted tar.gz: plain files with plain relative names, within limits, into a new folder."""

import re
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vht_federate.errors import PublicationError

__all__ = ["Limits", "pack", "unpack"]

_NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/){0,6}[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Limits:
    """What an archive may hold."""

    files: int = 5_000
    total_bytes: int = 1 << 30


def unpack(archive: BinaryIO, folder: Path, limits: Limits) -> None:
    """Unpack into ``folder``, which is created. Raises PublicationError VHT-PUBLICATION-ARCHIVE.

    Links, devices, absolute names, ``..``, names twice, and more files or bytes than ``limits`` are refused, each
    before anything of it is written. A folder's own entry is skipped.
    """
    folder.mkdir(parents=True)
    seen: set[str] = set()
    total = 0
    try:
        with tarfile.open(fileobj=archive, mode="r|gz") as members:
            for member in members:
                name = member.name.removeprefix("./").rstrip("/")
                if member.isdir() and (name in ("", ".") or _NAME.fullmatch(name)):
                    continue
                if not member.isreg():
                    raise _refused("it holds a link or a special file")
                if not _NAME.fullmatch(name) or name in seen:
                    raise _refused("it holds a name that is absolute, leads outside, or occurs twice")
                seen.add(name)
                total += member.size
                if len(seen) > limits.files or total > limits.total_bytes:
                    raise _refused("it holds more files or bytes than allowed")
                content = members.extractfile(member)
                if content is None:
                    raise _refused("a file in it has no content")
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    shutil.copyfileobj(content, file)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise _refused("it is not a whole tar.gz of files and folders") from error
    if not seen:
        raise _refused("it is empty")


def pack(folder: Path, archive: BinaryIO) -> None:
    """``folder``'s files as tar.gz, names relative to it, without times or owners."""
    with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as made:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                member = tarfile.TarInfo(path.relative_to(folder).as_posix())
                member.size = path.stat().st_size
                with path.open("rb") as file:
                    made.addfile(member, file)


def _refused(why: str) -> PublicationError:
    return PublicationError(
        f"the archive is refused: {why}",
        code="VHT-PUBLICATION-ARCHIVE",
        hint="send the files of one evidence bundle, relative to its folder, as tar.gz",
    )
