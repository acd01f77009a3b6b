"""Lines: each once, in order, whatever is wrong with the file."""

import gzip
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.fhir import ndjson as module
from connector.fhir.ndjson import Line, encoding_fault, read_lines


def read(path: Path, content: bytes, **more: int) -> list[Line]:
    path.write_bytes(content)
    return list(read_lines(path, **more))


MARK = "\ufeff".encode()


def unmarked(line: bytes) -> bool:
    """Neither what ends a line nor what may stand before the first."""
    return b"\n" not in line and not encoding_fault(line) and not line.startswith(MARK)


@given(st.lists(st.binary(min_size=0, max_size=40).filter(unmarked), max_size=30), st.booleans())
def test_every_line_comes_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], end: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "some.ndjson"
    content = b"\n".join(lines) + (b"\n" if end and lines else b"")
    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    actual = read(path, content)
    assert [line.number for line in actual] == list(range(1, len(expected) + 1))
    assert [line.content if line.fault is None else b"" for line in actual] == [
        line if line.strip() else b"" for line in expected
    ]
    assert {line.fault for line in actual} <= {None, "blank-line"}


def test_lines_that_span_chunks_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)
    wanted = [b"x" * size for size in (1, 6, 7, 8, 20, 3)]
    assert [line.content for line in read(tmp_path / "f.ndjson", b"\n".join(wanted))] == wanted


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert read(tmp_path / "f.ndjson", b"") == []
    assert read(tmp_path / "f.ndjson.gz", gzip.compress(b"")) == []


def test_a_line_over_the_limit_is_named_and_the_next_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 64)
    lines = read(tmp_path / "f.ndjson", b"a\n" + b"b" * 1000 + b"\nc\n" + b"d" * 1000, limit=100)
    assert [(line.number, line.fault) for line in lines] == [
        (1, None),
        (2, "line-too-long"),
        (3, None),
        (4, "line-too-long"),
    ]


def test_a_file_without_line_ends_never_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "f.ndjson.gz"
    path.write_bytes(gzip.compress(b"x" * (96 << 20), compresslevel=1))
    tracemalloc.start()
    lines = list(read_lines(path, limit=2 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [line.fault for line in lines] == ["line-too-long"]
    assert peak < 20 << 20


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_gzip_gives_its_whole_lines_and_one_for_the_rest(tmp_path: Path, kept: float) -> None:
    lines = [f"{number * 7919 % 10007}-{number}".encode() for number in range(20_000)]
    packed = gzip.compress(b"\n".join(lines) + b"\n")
    actual = read(tmp_path / "f.ndjson.gz", packed[: int(len(packed) * kept)])
    *whole, last = actual
    assert last.fault == "gzip-truncated"
    assert [line.content for line in whole] == lines[: len(whole)]
    assert [line.number for line in actual] == list(range(1, len(actual) + 1))
    assert len(whole) > 20_000 * kept * 0.8


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    assert [line.fault for line in read(tmp_path / "f.ndjson.gz", b"this is no gzip")] == ["gzip-corrupt"]
    packed = bytearray(gzip.compress(b"one\ntwo\n"))
    packed[-6] ^= 0xFF  # the checksum
    assert read(tmp_path / "g.ndjson.gz", bytes(packed))[-1].fault == "gzip-corrupt"


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_a_byte_order_mark_is_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(module, "CHUNK", size)
    lines = [Line(1, b'{"a":1}'), Line(2, fault="blank-line"), Line(3, b'{"b":2}')]
    content = MARK + b'{"a":1}\n' + MARK + b"\n" + MARK + b'{"b":2}'  # as of files put together
    assert read(tmp_path / "f.ndjson", content) == lines
    assert read(tmp_path / "f.ndjson", MARK) == [Line(1, fault="blank-line")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-16-be-marked"])
@pytest.mark.parametrize("text", ['{"a":1}\n{"b":2}\n', '{"a":1}'])
def test_a_file_of_utf_16_is_one_line_that_says_so(tmp_path: Path, encoding: str, text: str) -> None:
    content = text.encode(encoding.removesuffix("-marked"))
    content = b"\xfe\xff" + content if encoding.endswith("-marked") else content
    assert read(tmp_path / "f.ndjson", content) == [Line(1, fault="utf-16")]
