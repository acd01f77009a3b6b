"""Download of an export's files: a broken download goes on where it stopped if the server can, else it starts again.

Of each file the journal knows how many bytes are safely on disk; at the end its length, lines and SHA-256.
"""

import codecs
import hashlib
from pathlib import Path
from typing import IO

import httpx

from connector.fhir.sources.bulk_export import Expired
from connector.fhir.sources.http_client import SourceClient, refused, too_much
from connector.fhir.sources.ndjson_start import NdjsonStart
from connector.fhir.sources.progress import Journal, Piece
from connector.fhir.sources.retry import Retries
from vht_federate.files import flush_to_disk, sync

__all__ = ["Files", "Weight", "finish", "weigh"]

SYNC_EVERY = 8 << 20  # bytes between two notes in the journal
CHUNK = 1 << 20


class Weight:
    """Length, lines that are not blank, and digest of a file."""

    def __init__(self, path: Path) -> None:
        digest, self.bytes, self.lines, begun = hashlib.sha256(), 0, 0, False
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                written = chunk if self.bytes else chunk.removeprefix(codecs.BOM_UTF8)
                self.bytes += len(chunk)
                *ended, last = written.split(b"\n")
                if ended:
                    self.lines += (begun or not _blank(ended[0])) + sum(not _blank(line) for line in ended[1:])
                    begun = False
                begun = begun or not _blank(last)
        self.lines += begun
        self.sha256 = digest.hexdigest()


def _blank(line: bytes) -> bool:
    return not line or line.isspace()


def weigh(path: Path) -> Weight:
    return Weight(path)


def finish(journal: Journal, number: int, part: Path, target: Path, weight: Weight) -> None:
    """``part`` is whole: give it its name, then say so."""
    sync(part)
    part.replace(target)
    sync(target.parent)
    piece = (journal.progress.pieces or ())[number]
    changes = {"done": True, "bytes": weight.bytes, "lines": weight.lines, "sha256": weight.sha256}
    journal.replace(number, piece.model_copy(update=changes))


class Files:
    """Fetches the pieces of a journal into the folder ``run``."""

    def __init__(self, client: SourceClient, journal: Journal, run: Path, maximum_bytes: int) -> None:
        self._client, self._journal, self._run, self._maximum = client, journal, run, maximum_bytes

    def fetch(self) -> None:
        """Every piece that is not here yet. Raises Expired where the server no longer has one."""
        for number, piece in enumerate(self._journal.progress.pieces or ()):
            if not piece.done and not piece.paged:
                self._fetch(number)

    def _piece(self, number: int) -> Piece:
        return (self._journal.progress.pieces or ())[number]

    def _fetch(self, number: int) -> None:
        piece = self._piece(number)
        target = self._run / piece.folder / piece.name
        part = target.with_name(f"{piece.name}.part")
        patience = self._client.patience()
        while True:
            bytes_before = self._piece(number).bytes
            try:
                whole = self._stream(number, part, patience)
            except httpx.TransportError as error:
                if self._piece(number).bytes > bytes_before:
                    patience.refresh()
                patience.again(f"a download broke ({type(error).__name__})")
                continue
            weight = weigh(part)
            count = self._piece(number).count
            if whole and (count is None or weight.lines >= count):
                finish(self._journal, number, part, target, weight)
                return
            self._note(number, 0)
            patience.again("a file holds less than its manifest says")

    def _stream(self, number: int, part: Path, patience: Retries) -> bool:
        """Read what is missing of one piece. False where the server could not go on from what is here."""
        piece = self._piece(number)
        part.touch(mode=0o600)
        offset = min(piece.bytes, part.stat().st_size) if piece.validator else 0
        # what was noted counts bytes of the file itself, so no encoding of the transfer
        headers = {"Accept": "*/*", "Accept-Encoding": "identity", "Cache-Control": "no-cache"}
        if offset and piece.validator:
            headers |= {"Range": f"bytes={offset}-", "If-Range": piece.validator}
        everywhere = self._journal.progress.requires_token
        with self._client.open("GET", piece.url, headers=headers, patience=patience, everywhere=everywhere) as answer:
            if answer.status_code in (404, 410):
                raise Expired
            if answer.status_code == 416:
                return False
            if answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                return False
            if answer.status_code not in (200, 206):
                raise refused(answer, "the download of a file")
            if answer.status_code == 200:
                offset = 0
            self._write(number, part, offset, answer)
        return True

    def _write(self, number: int, part: Path, offset: int, answer: httpx.Response) -> None:
        if not offset:
            self._begin(number, answer)
        other_bytes = sum(
            piece.bytes for index, piece in enumerate(self._journal.progress.pieces or ()) if index != number
        )
        noted = position = offset
        start = NdjsonStart()
        with part.open("r+b") as file:
            file.truncate(offset)
            file.seek(0)
            while file.tell() < offset and not start.known:
                start.feed(file.read(CHUNK))
            file.seek(offset)
            try:
                for chunk in answer.iter_bytes():
                    start.feed(chunk)
                    self._require_disk_space(other_bytes + position + len(chunk))
                    file.write(chunk)
                    position += len(chunk)
                    if position - noted >= SYNC_EVERY:
                        noted = self._safe(number, file, position)
                    self._client.pace.check()
            finally:
                if position > noted:
                    self._safe(number, file, position)

    def _safe(self, number: int, file: IO[bytes], position: int) -> int:
        flush_to_disk(file)
        self._note(number, position)
        return position

    def _note(self, number: int, position: int) -> None:
        self._journal.replace(number, self._piece(number).model_copy(update={"bytes": position}))

    def _begin(self, number: int, answer: httpx.Response) -> None:
        """A file from its first byte. Only what has a strong validator, and no encoding, can be gone on with."""
        tag, encoded = answer.headers.get("ETag", ""), answer.headers.get("Content-Encoding", "identity") != "identity"
        validator = None if encoded or not tag.startswith('"') else tag
        changes = {"validator": validator, "bytes": 0}
        self._journal.replace(number, self._piece(number).model_copy(update=changes))

    def _require_disk_space(self, size: int) -> None:
        if size > self._maximum:
            raise too_much()
