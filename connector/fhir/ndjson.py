"""A file of NDJSON, plain, gzip or zstd, as numbered lines: in bounded memory, and with an account of what broke.

Every line appears once: as its bytes, or as the reason why it cannot be read. A compressed stream that ends early or is
damaged yields all the whole lines before the damage, and then one line that stands for the rest. JSON is UTF-8 (RFC
8259, 8.1): a byte order mark before a line is no part of it, and a file of UTF-16 is one line that says so.
"""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import pyarrow as pa

__all__ = ["LINE_LIMIT", "UTF_16", "Line", "chunks", "encoding_fault", "read_lines", "without_mark"]

CHUNK = 1 << 20
UTF_16 = "utf-16"
_MARK = b"\xef\xbb\xbf"
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{", b"[\0", b"\0[")  # a mark, or how JSON begins without one
LINE_LIMIT = 16 << 20  # bytes; a longer line is no resource that we read


@dataclass(frozen=True, slots=True)
class Line:
    """``fault`` says why there is no ``content``; ``deletion`` is the JSON of an entry that tells of one."""

    number: int
    content: bytes = b""
    fault: str | None = None
    deletion: bytes | None = None


def read_lines(path: Path, *, limit: int = LINE_LIMIT) -> Iterator[Line]:
    """Lines of ``path``, counted from 1; the line end is not part of the content. An empty file has none.

    Faults: ``blank-line``, ``line-too-long``, ``utf-16``, ``gzip-truncated``, ``gzip-corrupt``, ``zstd-truncated``,
    ``zstd-corrupt``, ``unreadable-file``.
    """
    number, rest, skipping = 0, b"", False
    for chunk, fault in chunks(path):
        if fault:
            yield Line(number + 1, fault=fault)
            return
        *whole, last = (rest + chunk).split(b"\n")
        for content in whole:
            number += 1
            if number == 1 and encoding_fault(content):
                yield Line(1, fault=UTF_16)
                return
            yield _too_long(number) if skipping or len(content) > limit else _line(number, content)
            skipping = False
        skipping = skipping or len(last) > limit
        rest = b"" if skipping else last
    if skipping:
        yield _too_long(number + 1)
    elif rest:
        wide = None if number else encoding_fault(rest)
        yield Line(1, fault=wide) if wide else _line(number + 1, rest)


def _too_long(number: int) -> Line:
    return Line(number, fault="line-too-long")


def _line(number: int, content: bytes) -> Line:
    if content.startswith(_MARK):  # of a file that was put together from several, before any line
        content = without_mark(content)
    return Line(number, content) if content.strip() else Line(number, fault="blank-line")


def without_mark(content: bytes) -> bytes:
    """Without a UTF-8 byte order mark before it."""
    return content.removeprefix(_MARK)


def encoding_fault(content: bytes) -> str | None:
    """``utf-16`` where a file begins like that."""
    return UTF_16 if content.startswith(_WIDE) else None


def chunks(path: Path) -> Iterator[tuple[bytes, str | None]]:
    """The decoded bytes of ``path``, in order; at the end, where it broke, the fault."""
    packed = path.suffix.lower()
    try:
        if packed == ".zst":
            yield from ((chunk, None) for chunk in _zstd(path))
            return
        with _open(path) as stream:
            while chunk := stream.read1(CHUNK):
                yield chunk, None
    except EOFError:
        yield b"", "gzip-truncated"
    except (gzip.BadGzipFile, zlib.error):
        yield b"", "gzip-corrupt"
    except OSError as error:
        # pyarrow has an OSError without a number for a damaged stream
        damaged = packed == ".zst" and error.errno is None
        yield b"", ("zstd-truncated" if "runcated" in str(error) else "zstd-corrupt") if damaged else "unreadable-file"


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    # read1 hands over what was decoded before the damage shows; read would lose it.
    return gzip.GzipFile(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _zstd(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file, pa.CompressedInputStream(file, "zstd") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk
