"""What became of a source's pulls: numbers, times and codes."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

__all__ = ["PullStatus", "Run"]

_STRICT = ConfigDict(extra="forbid", frozen=True)
RUNS_KEPT = 20
COUNTS = ("accepted", "quarantined", "duplicate", "superseded", "replaced", "deleted")


class Run(BaseModel):
    """One pull that ended. ``counts`` is of its intake, empty where there was nothing to take in or it failed."""

    model_config = _STRICT

    begun_at: AwareDatetime
    ended_at: AwareDatetime
    asked_by: str | None = None  # None: by its interval
    whole: bool = False
    resumed: bool = False
    since: AwareDatetime | None = None
    lines: int = 0
    bytes: int = 0
    unreadable: int = 0  # entries of lists of deletions: the next pull asks from the same moment again
    counts: dict[str, int] = {}
    code: str | None = None  # why it failed
    message: str | None = None


class PullStatus(BaseModel):
    """Newest run first. ``begun_at`` is set while a pull runs: found so at a start, that pull was cut off."""

    model_config = _STRICT

    begun_at: AwareDatetime | None = None
    begun_whole: bool = False
    next_at: AwareDatetime | None = None
    failures: int = 0  # in a row
    succeeded_at: AwareDatetime | None = None
    runs: tuple[Run, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "PullStatus":
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return cls()

    def begun(self, now: datetime, *, whole: bool = False) -> "PullStatus":
        return self.model_copy(update={"begun_at": now, "begun_whole": whole, "next_at": None})

    def ended(self, run: Run, every_s: float | None, retry_s: float) -> "PullStatus":
        """After a failure the next try comes sooner than ``every_s``, and later each time."""
        failures = self.failures + 1 if run.code else 0
        wait = every_s
        if failures and every_s is not None:
            wait = min(every_s, retry_s * 2.0 ** min(failures - 1, 20))
        changes = {
            "begun_at": None,
            "next_at": run.ended_at + timedelta(seconds=wait) if wait is not None else None,
            "failures": failures,
            "succeeded_at": self.succeeded_at if run.code else run.ended_at,
            "runs": (run, *self.runs)[:RUNS_KEPT],
        }
        return self.model_copy(update=changes)

    def described(self) -> dict[str, Any]:
        plain = self.model_dump(mode="json")
        newest = self.runs[0] if self.runs else None
        failed = {"code": newest.code, "message": newest.message} if newest and newest.code else None
        return {**plain, "error": failed}
