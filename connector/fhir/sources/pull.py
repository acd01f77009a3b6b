"""One pull: ask, wait, download, hand over; after a crash at any point the same call goes on from there.

sources/NAME/last.json      up to when this source has been taken in
sources/NAME/run/           the pull under way, private, removed when taken in: progress.json,
    data/ for the intake, aside/ for lists of deletions and the server's messages
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from connector.fhir.deletions import Deletions, read_deletions
from connector.fhir.disk_full import on_this_disk
from connector.fhir.sources.bulk_export import (
    Expired,
    JobFailed,
    Manifest,
    await_manifest,
    kick_off,
    release_job,
)
from connector.fhir.sources.downloaded_files import Files
from connector.fhir.sources.http_client import SourceClient
from connector.fhir.sources.progress import Journal, Progress
from connector.fhir.sources.retry import OutOfPatience, RetryPolicy
from connector.fhir.sources.search import Pages, first_pages, history_pages
from connector.fhir.sources.settings import SourceSettings
from vht_federate.errors import UnavailableError
from vht_federate.files import replace_file
from vht_federate.signing.canonical import digest_of

__all__ = ["Pulled", "download", "pull_from", "pulling", "settle_pull"]

Report = TypeVar("Report")
STARTS = 3  # how often a job that the server forgot is asked for again


class _Last(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    transaction_time: AwareDatetime


@dataclass(frozen=True)
class Pulled:
    """What lies in ``folder``. ``deleted`` counts what ``deletions`` list, ``unreadable`` what of their entries could
    not be understood, ``outcomes`` the server's messages."""

    folder: Path
    deletions: Deletions | None
    since: datetime | None
    transaction_time: datetime
    files: int
    lines: int
    bytes: int
    deleted: int
    unreadable: int
    outcomes: int
    resumed: bool

    def to_dict(self) -> dict[str, object]:
        """JSON for a command: numbers and times."""
        names = ("files", "lines", "bytes", "deleted", "unreadable", "outcomes", "resumed")
        plain = {name: getattr(self, name) for name in names}
        since = self.since.isoformat() if self.since else None
        return {**plain, "since": since, "transaction_time": self.transaction_time.isoformat()}


@contextmanager
def pulling(home: Path) -> Iterator[Path]:
    """The folder of one source, held by one pull at a time. Raises UnavailableError VHT-UNAVAILABLE-SOURCE-BUSY."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnavailableError(
                "this source is being pulled already", code="VHT-UNAVAILABLE-SOURCE-BUSY", hint="wait until it ends"
            ) from None
        yield home


def download(settings: SourceSettings, home: Path, *, whole: bool = False, pace: RetryPolicy | None = None) -> Pulled:
    """Fetch what changed since the last pull that was settled (``whole``: everything) into ``home/run/data``.

    Raises RefusedError VHT-REFUSED-SOURCE-ADDRESS, UnavailableError VHT-UNAVAILABLE-SOURCE… or VHT-UNAVAILABLE-DISK,
    each with the pull left as it is: the next call goes on.
    """
    pace = pace or RetryPolicy(settings.deadline_s)
    with on_this_disk(), SourceClient(settings, pace) as client:
        for start in range(1, STARTS + 1):
            journal, resumed = _journal(settings, home, whole, pace)
            try:
                _collect(client, settings, journal, home / "run")
                return _pulled(journal.progress, home / "run", resumed)
            except Expired:
                shutil.rmtree(home / "run", ignore_errors=True)
                if start == STARTS:
                    raise JobFailed("the FHIR server forgets its exports before they can be read") from None
            except JobFailed:
                shutil.rmtree(home / "run", ignore_errors=True)
                raise
    raise AssertionError("unreachable")


def settle_pull(settings: SourceSettings, home: Path, pulled: Pulled, *, replaced: bool = False) -> None:
    """What was downloaded has been taken in, or has ``replaced`` all that was held: remember up to when, and remove it.

    The moment stays where a deletion may have been missed, so that the next pull is told of it again.
    """
    if replaced or (not pulled.unreadable and _deletions_asked(settings, home, pulled)):
        last = _Last(transaction_time=pulled.transaction_time)
        replace_file(home / "last.json", last.model_dump_json().encode())
    journal = Journal.resume(home / "run" / "progress.json")
    status_url = journal.progress.status_url if journal else None
    shutil.rmtree(home / "run", ignore_errors=True)
    if status_url:
        with SourceClient(settings.model_copy(update={"attempts": 1}), RetryPolicy(60.0)) as client:
            release_job(client, status_url)


def pull_from(
    settings: SourceSettings,
    home: Path,
    take_in: Callable[[Pulled], Report],
    *,
    whole: bool = False,
    replace: bool = False,
) -> tuple[Pulled, Report | None]:
    """One pull from beginning to end. ``take_in`` is asked where there is anything to take in; with ``replace``
    (which is ``whole`` too) it puts that in the place of all that was held."""
    with pulling(home):
        pulled = download(settings, home, whole=whole or replace)
        report = take_in(pulled) if pulled.files or pulled.deletions else None
        settle_pull(settings, home, pulled, replaced=replace and report is not None)
    return pulled, report


def _deletions_asked(settings: SourceSettings, home: Path, pulled: Pulled) -> bool:
    """Did this pull ask for what was deleted since the last one? An export of everything lists no deletions."""
    by_manifest = settings.mode == "export" and settings.deletions == "manifest"
    return not by_manifest or pulled.since is not None or _since(home) is None


def _since(home: Path) -> datetime | None:
    try:
        return _Last.model_validate_json((home / "last.json").read_bytes()).transaction_time
    except (OSError, ValidationError):
        return None


def _journal(settings: SourceSettings, home: Path, whole: bool, pace: RetryPolicy) -> tuple[Journal, bool]:
    """The pull under way if it asks the same question, else a new one."""
    since = None if whole else _since(home)
    gone_since = _since(home) if settings.deletions == "history" else None
    names = {"base_url", "mode", "dialect", "level", "group", "types", "since_as_filter", "deletions"}
    question = settings.model_dump(mode="json", include=names)
    moments = {"since": since, "deleted_since": gone_since}
    question_digest = digest_of(
        {**question, **{name: moment and moment.isoformat() for name, moment in moments.items()}}
    )
    run = home / "run"
    journal = Journal.resume(run / "progress.json")
    if journal is not None and journal.progress.asked == question_digest and _on_disk(journal.progress, run):
        return journal, True
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True, mode=0o700)
    for folder in ("data", "aside"):
        (run / folder).mkdir(mode=0o700)
    journal = Journal(run / "progress.json", Progress(asked=question_digest, begun_at=pace.now(), **moments))
    journal.update()
    return journal, False


def _on_disk(progress: Progress, run: Path) -> bool:
    """Is every file that is said to be here as long as it was? One without a byte may have been removed."""
    done = [piece for piece in progress.pieces or () if piece.done and piece.bytes]
    return all(_length(run / piece.folder / piece.name) == piece.bytes for piece in done)


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _collect(client: SourceClient, settings: SourceSettings, journal: Journal, run: Path) -> None:
    stamp, gone_since = f"{settings.name}-{journal.progress.begun_at:%Y%m%dT%H%M%SZ}", journal.progress.deleted_since
    history = history_pages(settings, gone_since, stamp) if gone_since else ()
    if journal.progress.pieces is None and settings.mode == "search":
        journal.update(pieces=first_pages(settings, journal.progress.since, stamp) + history)
    if journal.progress.pieces is None:
        status_url = journal.progress.status_url or kick_off(client, settings, journal.progress.since)
        journal.update(status_url=status_url)
        manifest = _awaited(client, settings, journal, status_url)
        journal.update(
            transaction_time=manifest.transactionTime,
            requires_token=manifest.requiresAccessToken,
            pieces=manifest.pieces(stamp) + history,
        )
    Files(client, journal, run, settings.maximum_bytes).fetch()
    Pages(client, settings, journal, run).fetch()


def _awaited(client: SourceClient, settings: SourceSettings, journal: Journal, status_url: str) -> Manifest:
    """The manifest. A job whose server has been silent, or has put us off, for longer than a pull may last is given up:
    the same answer could come for ever."""
    try:
        return await_manifest(client, settings, status_url)
    except OutOfPatience as error:
        age = client.pace.now() - journal.progress.begun_at
        if age.total_seconds() <= settings.deadline_s:
            raise
        raise JobFailed("the FHIR server cannot be asked for an export that it began long ago") from error


def _pulled(progress: Progress, run: Path, resumed: bool) -> Pulled:
    """The account of a complete pull. Files without a line are removed: the intake would take them for cut off."""
    pieces = progress.pieces or ()
    for piece in pieces:
        if not piece.lines:
            (run / piece.folder / piece.name).unlink(missing_ok=True)
    by_kind = {
        kind: [piece for piece in pieces if piece.kind == kind and piece.lines]
        for kind in ("output", "deleted", "outcome")
    }
    output_pieces = by_kind["output"]
    moment = progress.transaction_time or progress.begun_at
    lists = tuple(run / piece.folder / piece.name for piece in by_kind["deleted"])
    deleted = unreadable = 0
    for line in (line for path in lists for line in read_deletions(path, moment)):
        deleted, unreadable = deleted + len(line.gone), unreadable + line.unreadable
    return Pulled(
        folder=run / "data",
        deletions=Deletions(lists, moment) if lists else None,
        since=progress.since,
        transaction_time=moment,
        files=len(output_pieces),
        lines=sum(piece.lines for piece in output_pieces),
        bytes=sum(piece.bytes for piece in output_pieces),
        deleted=deleted,
        unreadable=unreadable,
        outcomes=sum(piece.lines for piece in by_kind["outcome"]),
        resumed=resumed,
    )
