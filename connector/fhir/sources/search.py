"""Paged FHIR search, for servers without an export: one file per type, resumable after each page. And a type's history,
page by page, for the deletions that a server's exports and searches are silent about.

``next`` is followed as it is given (FHIR R4, 3.1.1.4). A page that is no longer there (410) starts its type again.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from connector.fhir.json_depth import parsed_in_parts, written
from connector.fhir.sources.bulk_export import fhir_instant
from connector.fhir.sources.downloaded_files import finish, weigh
from connector.fhir.sources.http_client import FHIR_JSON, SourceClient, refused, too_much
from connector.fhir.sources.progress import Journal, Piece
from connector.fhir.sources.response_body import malformed
from connector.fhir.sources.settings import SourceSettings
from connector.fhir.typed_elements import Quarantine
from vht_federate.files import flush_to_disk

__all__ = ["Pages", "first_pages", "history_pages"]

# HAPI may answer an identical search out of its cache
HEADERS = {"Accept": FHIR_JSON, "Cache-Control": "no-cache"}


def first_pages(settings: SourceSettings, since: datetime | None, stamp: str) -> tuple[Piece, ...]:
    """One piece per type, each before its first page."""
    return tuple(
        Piece(name=f"{stamp}-{number:05d}-{kind}.ndjson", type=kind, url=_question(settings, kind, since), paged=True)
        for number, kind in enumerate(settings.types, 1)
    )


def history_pages(settings: SourceSettings, since: datetime, stamp: str) -> tuple[Piece, ...]:
    """One piece per type, for what was deleted since."""
    return tuple(
        Piece(name=f"{stamp}-deleted-{kind}.ndjson", kind="deleted", type=kind, url=_history(settings, kind, since),
              paged=True)
        for kind in settings.types
    )  # fmt: skip


def _history(settings: SourceSettings, kind: str, since: datetime) -> str:
    query = {"_count": str(settings.page_size), "_since": fhir_instant(since)}
    return f"{settings.base}/{kind}/_history?{httpx.QueryParams(query)}"


def _question(settings: SourceSettings, kind: str, since: datetime | None) -> str:
    query = {"_count": str(settings.page_size)}
    if since is not None:
        query["_lastUpdated"] = f"ge{fhir_instant(since)}"
    return f"{settings.base}/{kind}?{httpx.QueryParams(query)}"


class Pages:
    """Fetches the paged pieces of a journal into the folder ``run``."""

    def __init__(self, client: SourceClient, settings: SourceSettings, journal: Journal, run: Path) -> None:
        self._client, self._settings, self._journal, self._run = client, settings, journal, run

    def fetch(self) -> None:
        for number, piece in enumerate(self._journal.progress.pieces or ()):
            if not piece.done and piece.paged:
                self._fetch(number)

    def _piece(self, number: int) -> Piece:
        return (self._journal.progress.pieces or ())[number]

    def _fetch(self, number: int) -> None:
        piece, patience = self._piece(number), self._client.patience()
        folder = self._run / piece.folder
        part, target = folder / f"{piece.name}.part", folder / piece.name
        part.touch(mode=0o600)
        while True:
            piece = self._piece(number)
            answer = self._client.ask("GET", piece.url, headers=HEADERS)
            if answer.status_code == 410 and piece.pages:
                patience.again("its pages end before they are read")
                changes = {"url": self._first(piece), "pages": 0, "bytes": 0}
                self._journal.replace(number, piece.model_copy(update=changes))
                continue
            if answer.status_code != 200:
                raise refused(answer, "a search" if piece.kind == "output" else "a question for a type's history")
            if self._journal.progress.transaction_time is None:
                self._journal.update(transaction_time=_asked_at(answer, self._client.pace.now()))
            next_url = self._keep(number, part, answer)
            if next_url is None:
                finish(self._journal, number, part, target, weigh(part))
                return

    def _first(self, piece: Piece) -> str:
        """Where its pages begin."""
        kind, progress = piece.type or "", self._journal.progress
        if piece.kind == "deleted" and progress.deleted_since is not None:
            return _history(self._settings, kind, progress.deleted_since)
        return _question(self._settings, kind, progress.since)

    def _keep(self, number: int, part: Path, answer: httpx.Response) -> str | None:
        """Append one page and note where the next one is; None after the last."""
        piece = self._piece(number)
        page = _bundle(answer)
        lines = b"".join(self._lines(page) if piece.kind == "output" else _deletions(page))
        held_bytes = sum(journal_piece.bytes for journal_piece in self._journal.progress.pieces or ())
        if held_bytes + len(lines) > self._settings.maximum_bytes:
            raise too_much()
        with part.open("r+b") as file:
            file.truncate(piece.bytes)
            file.seek(piece.bytes)
            file.write(lines)
            flush_to_disk(file)
        next_url = self._next(page, piece.url)
        changes = {"url": next_url or piece.url, "pages": piece.pages + 1, "bytes": piece.bytes + len(lines)}
        if next_url is not None:
            self._journal.replace(number, piece.model_copy(update=changes))
        return next_url

    def _next(self, page: dict[str, Any], url: str) -> str | None:
        links = page.get("link") or []
        if not isinstance(links, list):
            raise malformed("page")
        for link in links:
            if isinstance(link, dict) and link.get("relation") == "next" and isinstance(link.get("url"), str):
                next_url = self._client.guard.check(link["url"], seen_at=url)
                if next_url == url:
                    raise malformed("next page, which is the same page,")
                return next_url
        return None

    def _lines(self, page: dict[str, Any]) -> Iterator[bytes]:
        for entry in _entries(page):
            search = entry.get("search")
            mode = search.get("mode", "match") if isinstance(search, dict) else "match"
            resource = entry.get("resource")
            if mode == "match" and isinstance(resource, dict) and self._wanted(resource):
                yield written(resource) + b"\n"

    def _wanted(self, resource: dict[str, Any]) -> bool:
        """False for what did not change since, where a server takes no notice of the question."""
        since = self._journal.progress.since
        meta = resource.get("meta")
        if since is None or not isinstance(meta, dict):
            return True
        try:
            last_updated = datetime.fromisoformat(meta["lastUpdated"])
        except (KeyError, ValueError, TypeError):
            return True
        return last_updated.tzinfo is None or last_updated >= since


def _entries(page: dict[str, Any]) -> list[dict[str, Any]]:
    entries = page.get("entry") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise malformed("page")
    return entries


def _deletions(page: dict[str, Any]) -> Iterator[bytes]:
    """The deletions of a page of history as an export would list them, each with its time; and what may be one."""
    for entry in _entries(page):
        request = entry.get("request")
        method = request.get("method") if isinstance(request, dict) else None
        if method == "DELETE" or (method is None and "resource" not in entry):
            deletion_entry = {"request": request, "response": entry.get("response")}
            line = {"resourceType": "Bundle", "type": "transaction", "entry": [deletion_entry]}
            yield written(line) + b"\n"


def _bundle(answer: httpx.Response) -> dict[str, Any]:
    try:
        page = parsed_in_parts(answer.content)
    except Quarantine:
        raise malformed("page") from None
    if not isinstance(page, dict) or page.get("resourceType") != "Bundle":
        raise malformed("page")
    return page


def _asked_at(answer: httpx.Response, now: datetime) -> datetime:
    """The server's clock where it says it: what changes from then on is the next pull's."""
    try:
        moment = parsedate_to_datetime(answer.headers["Date"])
    except (KeyError, ValueError, TypeError):
        return now
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
