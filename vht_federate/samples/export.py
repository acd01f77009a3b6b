"""A FHIR R4 export as it lies on disk: a folder of NDJSON (plain, gzip or zstd), or one ``.tgz`` of such files.

Read as a stream of lines, in bounded memory; nothing of an archive is unpacked to disk, so a name in it leads nowhere.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from vht_federate.domain.export_files import BYTE_ORDER_MARK, is_debris, is_lines
from vht_federate.errors import InputError

__all__ = ["Export", "ExportLine"]

LINE_LIMIT = 16 << 20  # bytes; a longer line is no resource that a node reads
ARCHIVES = (".tgz", ".tar.gz")


@dataclass(frozen=True, slots=True)
class ExportLine:
    """A line that is not blank, counted from 1 in its file; ``content`` None where it is too long to be a resource."""

    file: str
    number: int
    content: bytes | None


@dataclass(frozen=True)
class Export:
    """``path``: the folder or the archive."""

    path: Path

    def lines(self, *, each: int | None = None, ignored: list[str] | None = None) -> Iterator[ExportLine]:
        """Every line of every file, the same each time; with ``each``, the first so many of every file. The names of
        what lies in the export and is not read (other endings, Bundles, what macOS or Windows left) join ``ignored``.

        Raises InputError VHT-INPUT-EXPORT where there is no NDJSON, or where a file is damaged or ends early: half an
        export is never taken for a whole one.
        """
        has_ndjson, current = False, self.path.name
        try:
            for current, stream in self._files([] if ignored is None else ignored):
                has_ndjson = True
                for number, content in islice(_lines(stream), each):
                    yield ExportLine(current, number, content)
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, _zstd_error()) as error:
            raise InputError(
                f"{current} is damaged, or ends early",
                code="VHT-INPUT-EXPORT",
                hint="fetch the export again; nothing was made of it",
            ) from error
        if not has_ndjson:
            raise InputError(
                f"{self.path.name} holds no NDJSON",
                code="VHT-INPUT-EXPORT",
                hint="expected is a folder of files such as Patient.ndjson or Patient.ndjson.gz, or a .tgz of them",
            )

    def _files(self, ignored: list[str]) -> Iterator[tuple[str, IO[bytes]]]:
        if self.path.is_dir():
            for path in sorted(self.path.iterdir()):
                if path.is_file() and _is_read(path.name):
                    with path.open("rb") as file:
                        yield path.name, _plain(path.name, file)
                else:
                    ignored.append(path.name)
        elif self.path.is_file() and self.path.name.endswith(ARCHIVES):
            with tarfile.open(self.path, "r|gz") as archive:
                for member in archive:
                    stream = archive.extractfile(member) if member.isreg() and _is_read(member.name) else None
                    if stream is not None:
                        name = Path(member.name).name
                        yield name, _plain(name, stream)
                    elif not member.isdir():
                        ignored.append(member.name)


def _is_read(name: str) -> bool:
    return is_lines(name) and not is_debris(name)


def _zstd_error() -> type[Exception]:
    """What a damaged zstd stream raises; looked up when something was raised."""
    import pyarrow as pa

    error: type[Exception] = pa.ArrowException
    return error


def _plain(name: str, file: IO[bytes]) -> Any:
    packed = name.lower()
    if packed.endswith(".zst"):
        import pyarrow as pa  # late: few exports need it

        return io.BufferedReader(pa.CompressedInputStream(file, "zstd"))
    return gzip.GzipFile(fileobj=file) if packed.endswith(".gz") else file


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    number = 0
    while line := stream.readline(LINE_LIMIT + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if len(line) > LINE_LIMIT:
            while line and not line.endswith(b"\n"):
                line = stream.readline(LINE_LIMIT)
            yield number, None
        elif line.strip():
            yield number, line.rstrip(b"\r\n")
