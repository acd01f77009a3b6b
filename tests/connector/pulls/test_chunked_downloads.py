"""A file is what its bytes are: how a network cuts them into pieces, or breaks in between, changes nothing."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from kit.bulk_pulls import quick

from connector.fhir.sources import SourceSettings, downloaded_files
from connector.fhir.sources.downloaded_files import Files, weigh
from connector.fhir.sources.http_client import SourceClient
from connector.fhir.sources.ndjson_start import NdjsonStart
from connector.fhir.sources.progress import Journal, Piece, Progress
from vht_federate.errors import UnavailableError

MARK = b"\xef\xbb\xbf"
READ = [b"\n{}\n{}", MARK + b"{}\n", MARK + b"\r\n {}", b" \t\n\n{}", b"{}\n\n{}", b"\n\n", MARK]
REFUSED = [b"\n<a/>", MARK + b"<a/>", b"\xef\xbb{}\n", MARK + MARK + b"{}", b"\n" + MARK + b"{}", b"[{}]\n", b"\xbf{}"]
URL = "http://127.0.0.1:9/fhir"


def chunkings(body: bytes) -> Iterator[list[bytes]]:
    """Every way to cut it."""
    for cuts in range(1 << (len(body) - 1)):
        ends = [at + 1 for at in range(len(body) - 1) if cuts >> at & 1] + [len(body)]
        yield [body[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def begins(chunks: list[bytes]) -> bool:
    start = NdjsonStart()
    for chunk in chunks:
        start.feed(chunk)
    return start.known


def few_chunkings(body: bytes) -> list[list[bytes]]:
    """Whole, in two, and byte by byte."""
    halves = [[body[:at], body[at:]] for at in range(1, len(body))]
    return [[body], *halves, [body[at : at + 1] for at in range(len(body))]]


def fetched(home: Path, answer: Callable[[httpx.Request], httpx.Response], count: int | None = None) -> Piece:
    """A file downloaded from a server that answers so."""
    settings = SourceSettings(name="s", base_url=URL)
    for folder in ("data", "aside"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "data" / "f.ndjson.part").unlink(missing_ok=True)
    piece = Piece(name="f.ndjson", url=f"{URL}/f", count=count)
    journal = Journal(home / "progress.json", Progress(asked="", begun_at=datetime.now(UTC), pieces=(piece,)))
    with SourceClient(settings, quick()) as client:
        client._http = httpx.Client(transport=httpx.MockTransport(answer))
        Files(client, journal, home, 1 << 20).fetch()
    return (journal.progress.pieces or ())[0]


@pytest.mark.parametrize("body", READ, ids=repr)
def test_a_file_that_begins_with_a_mark_or_blank_lines_is_read_however_it_is_cut(tmp_path: Path, body: bytes) -> None:
    lines = sum(bool(line.strip()) for line in body.removeprefix(MARK).split(b"\n"))
    for chunks in chunkings(body):
        assert begins(chunks) == bool(lines)
    for chunks in few_chunkings(body):
        piece = fetched(tmp_path, lambda _, chunks=chunks: httpx.Response(200, content=iter(chunks)))
        assert (tmp_path / "data" / "f.ndjson").read_bytes() == body
        assert (piece.bytes, piece.lines) == (len(body), lines)


@pytest.mark.parametrize("body", REFUSED, ids=repr)
def test_what_is_no_ndjson_is_refused_however_it_is_cut(tmp_path: Path, body: bytes) -> None:
    for chunks in chunkings(body):
        with pytest.raises(UnavailableError, match="no NDJSON"):
            begins(chunks)
    for chunks in few_chunkings(body):
        with pytest.raises(UnavailableError, match="no NDJSON") as caught:
            fetched(tmp_path, lambda _, chunks=chunks: httpx.Response(200, content=iter(chunks)))
        assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-ANSWER"
        assert not (tmp_path / "data" / "f.ndjson").exists()


def breaking(body: bytes, at: int) -> Callable[[httpx.Request], httpx.Response]:
    """Serves ``body``; the first transfer breaks after ``at`` bytes, and the next goes on there."""

    def first() -> Iterator[bytes]:
        yield body[:at]
        raise httpx.ReadError("cut")

    def answer(request: httpx.Request) -> httpx.Response:
        asked = request.headers.get("Range")
        if asked is None:
            return httpx.Response(200, headers={"ETag": '"v"'}, content=first())
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        headers = {"ETag": '"v"', "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        return httpx.Response(206, headers=headers, content=iter([body[start:]]))

    return answer


@pytest.mark.parametrize("body", [*READ[:5], *REFUSED], ids=repr)
def test_a_transfer_that_breaks_within_the_beginning_goes_on_and_is_still_looked_at(
    tmp_path: Path, body: bytes
) -> None:
    for at in range(1, len(body)):
        if body in REFUSED:
            with pytest.raises(UnavailableError, match="no NDJSON"):
                fetched(tmp_path, breaking(body, at))
        else:
            assert fetched(tmp_path, breaking(body, at)).bytes == len(body)
            assert (tmp_path / "data" / "f.ndjson").read_bytes() == body


def test_a_blank_line_does_not_stand_for_a_resource_that_is_missing(tmp_path: Path) -> None:
    answers = iter([b"\n{}\n", b"\n{}\n{}\n"])
    piece = fetched(tmp_path, lambda _: httpx.Response(200, content=next(answers)), count=2)
    assert (piece.lines, piece.bytes) == (2, 7)


@pytest.mark.parametrize("chunk", [1, 2, 3, 1 << 20])
def test_lines_are_counted_alike_whatever_is_read_at_once(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloaded_files, "CHUNK", max(chunk, 3))
    for content, lines in ((b"", 0), (b"{}", 1), (b"\n \n{}\n\r\n{ }\n\n", 2), (b'{"a":1}\n{"b":2}', 2), (MARK, 0)):
        (tmp_path / "f").write_bytes(content)
        assert weigh(tmp_path / "f").lines == lines
