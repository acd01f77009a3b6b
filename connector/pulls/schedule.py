"""Pulls of a running node: when a source is due or an operator asks, one at a time per source.

Each pull is a process of its own (``connector.pulls.worker``), so that the console never waits for it. A server's error
is noted, and tried again after a while; a pull that was cut off goes on when the node starts again.
"""

import contextlib
import logging
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from connector.governance.operator_accounts import Actor
from connector.pulls.installed_sources import Source, Sources
from connector.pulls.pull_history import COUNTS, PullStatus, Run
from connector.settings import NodeFiles
from vht_federate.child_processes import tied_to_us
from vht_federate.errors import UnavailableError, VhtError
from vht_federate.processes import stop_tree

__all__ = ["Schedule"]

log = logging.getLogger("vht.node.pulls")
TICK_S = 1.0
RETRY_S = 60.0
GRACE_S = 10.0
TAKING_IN = "taking in"  # a worker's word
Record = Callable[..., object]


@dataclass
class _Pull:
    """A pull under way. ``actor`` asked for it; None: it was due."""

    source: Source
    actor: Actor | None
    whole: bool
    phase: str = "starting"
    process: "subprocess.Popen[bytes] | None" = None
    reported: dict[str, Any] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)


class Schedule:
    """Looks every ``tick_s`` which of the installed sources is due, from ``start`` until ``close``.

    ``record(report, source=, actor=)`` enters an intake in the database before the pull is settled.
    """

    def __init__(
        self,
        state: Path,
        record: Record,
        clock: Callable[[], datetime],
        *,
        tick_s: float = TICK_S,
        retry_s: float = RETRY_S,
        jitter: Callable[[], float] = random.SystemRandom().random,
    ) -> None:
        self._state, self._record, self._clock = state, record, clock
        self._tick_s, self._retry_s, self._jitter = tick_s, retry_s, jitter
        self.sources = Sources(NodeFiles(state).sources)
        self._running: dict[str, _Pull] = {}
        self._threads: list[threading.Thread] = []
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vht-pulls")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop what runs; each goes on at the next start. An intake under way may end, and be logged, first."""
        with self._lock:
            self._over.set()
            running = list(self._running.values())
        for pull in running:
            if pull.phase == TAKING_IN:
                pull.ended.wait(GRACE_S)
            if pull.process and pull.process.poll() is None:
                stop_tree(pull.process.pid, patience_s=3.0)
        if self._thread.is_alive():
            self._thread.join()
        for thread in self._threads:
            thread.join()

    def ask(self, name: str, actor: Actor, *, whole: bool = False) -> None:
        """Pull now. Raises NotFoundError; UnavailableError VHT-UNAVAILABLE-SOURCE-BUSY where one runs."""
        source = self.sources.get(name)
        if not self._begin(source, actor, whole):
            raise UnavailableError(
                "this source is being pulled already", code="VHT-UNAVAILABLE-SOURCE-BUSY", hint="wait until it ends"
            )

    def run(self, name: str, actor: Actor, *, whole: bool = False) -> dict[str, Any]:
        """Pull now and wait until it has ended: how the source stands. Raises as ``ask``."""
        self.ask(name, actor, whole=whole)
        try:
            for thread in self._threads:
                thread.join()
        except BaseException:
            self.close()
            raise
        return self.sources.get(name).described()

    def described(self) -> list[dict[str, Any]]:
        """Every installed source and how it stands."""
        phases = {name: pull.phase for name, pull in self._running.copy().items()}
        return [source.described(phases.get(source.name)) for source in self.sources.all()]

    # --- when ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        first = True
        while not self._over.is_set():
            for source in self.sources.all():
                with contextlib.suppress(VhtError):  # a file that cannot be read is shown as unusable
                    if self._due(source, source.standing, cut_off=first):
                        self._begin(source, None, whole=first and source.standing.begun_whole)
            first = False
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._over.wait(self._tick_s)

    def _due(self, source: Source, standing: PullStatus, *, cut_off: bool) -> bool:
        """At a start, a pull that was ``cut_off`` is due at once; so is an interval that has no time yet."""
        if standing.begun_at is not None:
            return cut_off
        if standing.next_at is not None:
            return self._clock() >= standing.next_at
        return source.settings.every is not None

    def _begin(self, source: Source, actor: Actor | None, whole: bool) -> bool:
        with self._lock:
            if self._over.is_set() or source.name in self._running:
                return False
            pull = self._running[source.name] = _Pull(source, actor, whole)
            # the kernel ties a child's life to the thread that started it, so this one stays until it ends
            thread = threading.Thread(target=self._run, args=(pull,), name=f"vht-pull-{source.name}")
            self._threads.append(thread)
            thread.start()
        return True

    # --- one pull -----------------------------------------------------------------------------------------------

    def _run(self, pull: _Pull) -> None:
        begun, source = self._clock(), pull.source
        try:
            source.note(source.standing.begun(begun, whole=pull.whole))
            try:
                self._follow(pull)
            except Exception:
                log.exception("a pull could not be followed", extra={"facts": {"source": source.name}})
            if not self._over.is_set() or "pulled" in pull.reported:
                self._note(pull, begun)
        finally:
            pull.ended.set()
            with self._lock:
                del self._running[source.name]

    def _follow(self, pull: _Pull) -> None:
        command = [sys.executable, "-m", "connector.pulls.worker", str(self._state), pull.source.name]
        with self._lock:
            if self._over.is_set():
                return
            pull.process = subprocess.Popen(
                tied_to_us([*command, *["--whole"] * pull.whole]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        with pull.process as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for line in process.stdout:
                message = orjson.loads(line)
                pull.phase = message.get("phase", pull.phase)
                pull.reported |= message
                if "report" in message:
                    self._record(message["report"], source=pull.source.name, actor=pull.actor or _SCHEDULE)
                    process.stdin.write(b"recorded\n")
                    process.stdin.flush()

    def _note(self, pull: _Pull, begun: datetime) -> None:
        run = _run_of(pull, begun, self._clock())
        source, retry_s = pull.source, self._retry_s * (1 + self._jitter() / 4)
        if (source.home / "source.toml").exists():
            source.note(source.standing.ended(run, source.settings.every_s, retry_s))
        facts = {"source": source.name, "lines": run.lines, "code": run.code}
        log.log(logging.WARNING if run.code else logging.INFO, "a pull ended", extra={"facts": facts})


_SCHEDULE = Actor("schedule", "viewer", "interval")


def _run_of(pull: _Pull, begun: datetime, now: datetime) -> Run:
    outcome = pull.reported
    pulled, report, error = outcome.get("pulled", {}), outcome.get("report") or {}, outcome.get("error")
    if not pulled and error is None:
        error = {"code": "VHT-UNAVAILABLE-SOURCE-PULL", "message": "the process of this pull ended before it was done"}
    return Run(
        begun_at=begun,
        ended_at=now,
        asked_by=pull.actor.name if pull.actor else None,
        whole=pull.whole,
        counts={name: report[name] for name in COUNTS if name in report},
        code=error["code"] if error else None,
        message=error["message"] if error else None,
        **{name: pulled[name] for name in ("resumed", "since", "lines", "bytes", "unreadable") if name in pulled},
    )
