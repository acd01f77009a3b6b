"""The evidence log on the console's pages: lines of one visit, of refusals, of all."""

from itertools import islice
from typing import Any

from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.event_text import describe, digest_in
from vht_federate.evidence.events import PermitChecked, RoundRefused
from vht_federate.evidence.log import EvidenceLog

__all__ = ["chain_of_custody", "log_lines", "refusals"]


def _line(entry: LogEntry) -> dict[str, Any]:
    return {
        "index": entry.index,
        "time": entry.time,
        "kind": entry.kind,
        "visit": entry.visit,
        "permit_id": entry.permit_id,
        "sentence": describe(entry),
        "code": entry.body.get("code"),
        "digest": digest_in(entry),
    }


def chain_of_custody(log: EvidenceLog, visit_id: str) -> list[dict[str, Any]]:
    """All that was logged of one visit, oldest first."""
    return [_line(entry) for entry in log.entries() if entry.visit == visit_id]


def refusals(log: EvidenceLog, count: int) -> list[dict[str, Any]]:
    """The latest refused studies and rounds, newest first."""
    newest = (
        entry
        for entry in reversed(list(log.entries()))
        if entry.kind == RoundRefused.entry_kind
        or (entry.kind == PermitChecked.entry_kind and entry.body["outcome"] == "refused")
    )
    return [_line(entry) for entry in islice(newest, count)]


def log_lines(log: EvidenceLog, count: int, before: int | None = None) -> tuple[list[dict[str, Any]], int | None]:
    """``count`` entries below index ``before`` (the newest), newest first, and where the next page starts."""
    entries = [entry for entry in log.entries() if before is None or entry.index < before]
    page = entries[-count:]
    earlier = page[0].index if page and page[0].index > 0 else None
    return [_line(entry) for entry in reversed(page)], earlier
