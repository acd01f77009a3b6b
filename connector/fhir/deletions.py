"""Deletions at a source: what is gone there leaves the store here, and its older versions do not come back.

A source lists them as Bundles whose entries are DELETE requests (Bulk Data Access, "deleted"), one Bundle a line. Each
leaves a tombstone in the store: keyed ids and a time. A version that is newer than the tombstone lifts it. While a
Patient's tombstone stands, nothing of that patient is held and nothing comes in.
"""

# ruff: noqa: S608 - SQL is put together from our own paths, quoted, and from constants.

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from connector.duckdb_lockdown import quoted
from connector.fhir.ndjson import Line, read_lines
from connector.fhir.resources import KEPT, TABLES
from connector.fhir.store import Generation, table_name
from connector.fhir.subject_keys import ID

__all__ = [
    "TABLE",
    "UNREADABLE",
    "Deleted",
    "Deletions",
    "Listed",
    "bury",
    "read_deletion",
    "read_deletions",
    "write_tombstones",
]

TABLE = "tombstone"
UNREADABLE = "unreadable-deletion"  # a line that is not, or not wholly, a list of deletions
Query = Callable[[str], list[tuple[Any, ...]]]
_URL = re.compile(rf"(?:https?://[^\s?#]+/|/)?([A-Z][A-Za-z]+)/({ID.pattern})(?:/_history/([^/\s]+))?")
_TYPE, _SEPARATOR = re.compile("[A-Z][A-Za-z]+"), re.compile("[/?#]")
_ETAG = re.compile(r'(?:W/)?"([0-9]{1,18})"')
_NUMBER = re.compile("[0-9]{1,18}")
_UNKNOWN = datetime.min.replace(tzinfo=UTC)
_COLUMNS = "type, resource, subject, moment, version"
_NONE = (
    "SELECT NULL::VARCHAR AS type, NULL::VARCHAR AS resource, NULL::VARCHAR AS subject, NULL::TIMESTAMPTZ AS moment, "
    "NULL::BIGINT AS version WHERE false"
)


@dataclass(frozen=True)
class Deletions:
    """``files`` list what was deleted ``at`` the latest; an entry may say when (``response.lastModified``), and as
    which version (``request.url``, ``response.etag``)."""

    files: tuple[Path, ...]
    at: datetime


@dataclass(frozen=True, slots=True)
class Deleted:
    """One resource that a source deleted."""

    type: str
    id: str
    at: datetime
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """What line ``number`` lists of the types that are kept. ``unreadable`` counts entries that may be of such a type
    and cannot be understood; a line that is no list of entries counts as one."""

    number: int
    gone: tuple[Deleted, ...] = ()
    unreadable: int = 0


def read_deletions(path: Path, at: datetime) -> Iterator[Listed]:
    """What each line lists, entry by entry. A blank line lists nothing, and neither does a Bundle without entries."""
    for line in read_lines(path):
        if line.fault != "blank-line":
            yield _listed(line, at)


def read_deletion(entry: bytes) -> Deleted | None:
    """The deletion of which one entry of a history tells; None for a type that is not kept.

    Raises ValueError where it is not understood, or when it was is not said.
    """
    deleted = _gone(orjson.loads(entry), _UNKNOWN)
    if deleted and deleted.at is _UNKNOWN:
        raise ValueError("when is not said")
    return deleted


def _listed(line: Line, at: datetime) -> Listed:
    try:
        entries = None if line.fault else _entries(orjson.loads(line.content))
    except orjson.JSONDecodeError:
        entries = None
    if entries is None:
        return Listed(line.number, unreadable=1)
    gone, unreadable = [], 0
    for entry in entries:
        try:
            gone.append(_gone(entry, at))
        except ValueError:
            unreadable += 1
    return Listed(line.number, tuple(deletion for deletion in gone if deletion), unreadable)


def _entries(content: Any) -> list[Any] | None:
    """None where ``content`` is no list of deletions. FHIR knows no empty list: a Bundle of nothing has no entry."""
    if not isinstance(content, dict):
        return None
    entries = content.get("entry")
    if entries is None and content.get("resourceType") == "Bundle":
        return []
    return entries if isinstance(entries, list) else None


def _gone(entry: Any, at: datetime) -> Deleted | None:
    """None for a type that is not kept. Raises ValueError for what may be of one, and is no deletion of Type/ID."""
    request, response = (_part(entry, name) for name in ("request", "response"))
    url = request.get("url")
    if not isinstance(url, str):
        raise ValueError("no address")
    match = _URL.fullmatch(url)
    if match and match[1] in KEPT:
        if request.get("method") != "DELETE":
            raise ValueError("no deletion")
        moment = _moment(response.get("lastModified"), at)
        return Deleted(match[1], match[2], moment, _version(match[3], response.get("etag")))
    before_last = _SEPARATOR.split(url)[:-1]
    if any(part in KEPT for part in before_last) or not any(map(_TYPE.fullmatch, before_last)):
        raise ValueError("which type, or which one of it, is not said")
    return None


def _part(entry: Any, name: str) -> dict[str, Any]:
    part = entry.get(name) if isinstance(entry, dict) else None
    return part if isinstance(part, dict) else {}


def _moment(last_modified: Any, at: datetime) -> datetime:
    """When it was deleted: ``at`` the latest where that is not said, or not as a time with a zone."""
    try:
        moment = datetime.fromisoformat(last_modified)
        return moment.astimezone(UTC) if moment.tzinfo else at
    except (TypeError, ValueError, OverflowError):
        return at


def _version(version_id: str | None, etag: Any) -> int | None:
    """The deletion's own place among the versions, where it is a number."""
    if version_id and _NUMBER.fullmatch(version_id):
        return int(version_id)
    match = _ETAG.fullmatch(etag) if isinstance(etag, str) else None
    return int(match[1]) if match else None


def _tombstones(before: Generation | None) -> str:
    parts = before.parts(TABLE) if before else []
    return f"SELECT {_COLUMNS} FROM read_parquet([{', '.join(map(quoted, parts))}])" if parts else _NONE


def bury(query: Query, before: Generation | None, *, deletions: str, lines: str, seen: str) -> None:
    """Tables for the verdicts: ``buried`` (tombstones in force), ``late`` (lines below one, by file and line) and
    ``left_store`` (resources that go). ``deletions`` and ``lines`` are staged, ``seen`` is what is held."""
    query(f"""CREATE TEMP TABLE buried AS
        SELECT resource, any_value(type) AS type, any_value(subject) AS subject, max(moment) AS moment,
            max(version) AS version
        FROM ({_tombstones(before)} UNION ALL SELECT {_COLUMNS} FROM {deletions}) GROUP BY resource""")
    query(f"""DELETE FROM buried USING (SELECT resource, updated, version FROM {lines}
            UNION ALL SELECT resource, updated, version FROM ({seen})) newer
        WHERE buried.resource = newer.resource
            AND (newer.updated > buried.moment OR newer.version > buried.version)""")
    query(f"""CREATE TEMP TABLE late AS SELECT file, line FROM {lines}
        WHERE resource IN (SELECT resource FROM buried)
            OR subject IN (SELECT subject FROM buried WHERE subject IS NOT NULL)""")
    of_buried_patients = [
        f"SELECT resource, {quoted(kind)} AS type FROM read_parquet([{', '.join(map(quoted, parts))}]) "
        "WHERE subject IN (SELECT subject FROM buried WHERE subject IS NOT NULL)"
        for kind in TABLES
        if before and (parts := before.parts(table_name(kind)))
    ]
    of_themselves = f"SELECT b.resource, b.type FROM buried b SEMI JOIN ({seen}) USING (resource)"
    query(f"CREATE TEMP TABLE left_store AS {' UNION '.join([of_themselves, *of_buried_patients])}")


def write_tombstones(query: Query, before: Generation | None, *, deletions: str, part: Path) -> bool:
    """A part with the tombstones that are new. True where there are any."""
    query(f"""COPY (
            SELECT type, resource, any_value(subject) AS subject, max(moment) AS moment, max(version) AS version
            FROM {deletions} d WHERE NOT EXISTS (
                SELECT 1 FROM ({_tombstones(before)}) t WHERE t.resource = d.resource
                    AND t.moment >= d.moment AND coalesce(t.version, 0) >= coalesce(d.version, 0))
            GROUP BY type, resource ORDER BY type, resource)
        TO {quoted(part)} (FORMAT parquet, COMPRESSION zstd)""")
    [(count,)] = query(f"SELECT count(*) FROM read_parquet({quoted(part)})")
    if not count:
        part.unlink()
    return bool(count)
