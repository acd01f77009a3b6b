"""Lines: each once, in order, whatever is wrong with the file."""

import gzip
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.fhir import ndjson as module
from connector.fhir.ndjson import Line, read_lines


def read(path: Path, content: bytes, **more: int) -> list[Line]:
    path.write_bytes(content)
    return list(read_lines(path, **more))


@given(st.lists(st.binary(min_size=0, max_size=40).filter(lambda line: b"\n" not in line), max_size=30), st.booleans())
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
