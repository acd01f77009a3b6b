"""Unpack an untrusted tar.gz: plain files with plain relative names, within limits, into a new folder.

Memory does not grow with what an archive claims: decompressed bytes are counted as they come, contents are copied piece
by piece, and the headers that extend a name (POSIX pax, GNU long names) are read only up to ``_EXTENSION`` bytes. The
formats are those of POSIX.1-2008 ``pax`` ("ustar Interchange Format", "pax Header Block") and of GNU tar.
"""

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vht_federate.errors import PublicationError

__all__ = ["Limits", "pack", "unpack"]

_NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}/){0,6}[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_PIECE = 1 << 16
_BLOCK = tarfile.BLOCKSIZE
_EXTENSION = 1 << 16  # bytes of one extended header
_HEADERS = 1 << 12  # bytes of headers and padding granted for each file that an archive may hold
_PAX = re.compile(rb"(\d{1,6}) ([^=]+)=")
_PAX_UNREAD = ("size", "linkpath", "GNU.sparse.")  # records that change what a member is


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
    names: set[str] = set()
    total = 0
    content = _Content(archive, limits.total_bytes + _HEADERS * (limits.files + 16))
    for name, size in _members(content):
        if not _NAME.fullmatch(name) or name in names:
            raise _refused("it holds a name that is absolute, leads outside, or occurs twice")
        names.add(name)
        total += size
        if len(names) > limits.files or total > limits.total_bytes:
            raise _refused("it holds more files or bytes than allowed")
        _write(content, folder / name, size)
    if not names:
        raise _refused("it is empty")


def pack(folder: Path, archive: BinaryIO) -> None:
    """``folder``'s files as tar.gz, names relative to it, without times or owners."""
    with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                member = tarfile.TarInfo(path.relative_to(folder).as_posix())
                member.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(member, file)


class _Content:
    """The decompressed stream, of at most ``limit`` bytes."""

    def __init__(self, archive: BinaryIO, limit: int) -> None:
        self._stream = gzip.GzipFile(fileobj=archive, mode="rb")
        self._left = limit

    def pieces(self, size: int) -> Iterator[bytes]:
        """Exactly ``size`` bytes, in small pieces."""
        while size:
            piece = self.upto(min(size, _PIECE))
            if not piece:
                raise _broken()
            size -= len(piece)
            yield piece

    def upto(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end, where gzip's checksum held."""
        try:
            piece = self._stream.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise _broken() from error
        self._left -= len(piece)
        if self._left < 0:
            raise _refused("it holds more files or bytes than allowed")
        return piece

    def exactly(self, size: int) -> bytes:
        """``size`` bytes at once: for headers."""
        return b"".join(self.pieces(size))

    def skip(self, size: int) -> None:
        for _ in self.pieces(size):
            pass


def _members(content: _Content) -> Iterator[tuple[str, int]]:
    """Name and size of each file; whoever iterates takes its content, padding included, before the next."""
    long_name: str | None = None
    while True:
        block = content.exactly(_BLOCK)
        if not block.strip(b"\0"):
            break
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise _broken() from error
        if member.size < 0:
            raise _broken()
        if member.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
            extended_name = _extension(content, member)
            long_name = long_name if extended_name is None else extended_name
            continue
        name = (member.name if long_name is None else long_name).removeprefix("./").rstrip("/")
        long_name = None
        if member.isdir() and member.size == 0 and (name in ("", ".") or _NAME.fullmatch(name)):
            continue
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise _refused("it holds a link or a special file")
        yield name, member.size
    while rest := content.upto(_PIECE):
        if rest.strip(b"\0"):
            raise _refused("it holds something behind its end")


def _extension(content: _Content, member: tarfile.TarInfo) -> str | None:
    """The name that an extended header gives to the next member, if any; times and owners are skipped."""
    if member.size > _EXTENSION:
        raise _refused("it holds an extended header that is larger than any name")
    header = content.exactly(_padded(member.size))[: member.size]
    try:
        if member.type == tarfile.GNUTYPE_LONGNAME:
            return header.partition(b"\0")[0].decode()
        records = dict(_records(header))
    except UnicodeDecodeError as error:
        raise _broken() from error
    if any(key.startswith(_PAX_UNREAD) for key in records):
        raise _refused("it holds a link or a special file")
    return records.get("path") if member.type == tarfile.XHDTYPE else None


def _records(header: bytes) -> Iterator[tuple[str, str]]:
    """The records ``LENGTH KEY=VALUE\\n`` of a pax header."""
    at = 0
    while at < len(header) and header[at]:
        match = _PAX.match(header, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(header) or header[end - 1] != ord("\n"):
            raise _broken()
        yield match[2].decode(), header[match.end() : end - 1].decode()
        at = end


def _write(content: _Content, target: Path, size: int) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("xb")
    except (FileExistsError, NotADirectoryError) as error:
        raise _refused("a name in it is a file and a folder") from error
    with file:
        for piece in content.pieces(size):
            file.write(piece)
    content.skip(_padded(size) - size)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _broken() -> PublicationError:
    return _refused("it is not a whole tar.gz of files and folders")


def _refused(why: str) -> PublicationError:
    return PublicationError(
        f"the archive is refused: {why}",
        code="VHT-PUBLICATION-ARCHIVE",
        hint="send the files of one evidence bundle, relative to its folder, as tar.gz",
    )
