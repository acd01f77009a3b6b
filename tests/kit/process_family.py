"""Every process that a process ever started: found by who started it, whatever environment and session it runs in."""

import threading
import time
from collections.abc import Callable

import psutil

__all__ = ["Family", "await_that", "gone", "running"]


def running(process: psutil.Process) -> bool:
    """True while that very process runs: neither a zombie nor another that was given its pid."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(processes: list[psutil.Process], deadline_s: float) -> list[psutil.Process]:
    """Wait until all are gone; those that are not."""
    deadline = time.monotonic() + deadline_s
    while any(map(running, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [process for process in processes if running(process)]


def await_that(condition: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Poll ``condition``; the test fails with ``what`` where it does not come true."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {deadline_s:g} s in vain: {what}"
        time.sleep(0.1)


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Family:
    """``with Family(pid) as family``: watches the process ``pid`` and all that it starts until the block ends."""

    def __init__(self, pid: int, *, every_s: float = 0.4) -> None:
        self._top, self._every_s = psutil.Process(pid), every_s
        self._seen: dict[psutil.Process, str] = {self._top: ""}  # equal where pid and start time are
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._watch = threading.Thread(target=self._keep_looking, daemon=True)

    def __enter__(self) -> "Family":
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    def look(self) -> None:
        """Note who is there now. One reading of the process table, so that it can be done often."""
        table = [(process, process.info["ppid"]) for process in psutil.process_iter(["ppid"])]
        with self._lock:
            pids = {process.pid for process in self._seen if running(process)}
            members = [process for process, _ in table if process in self._seen]
            while more := [process for process, parent in table if parent in pids and process.pid not in pids]:
                pids |= {process.pid for process in more}
                members += more
            for process in members:
                self._seen[process] = _words(process) or self._seen.get(process, "")

    def _keep_looking(self) -> None:
        while not self._over.wait(self._every_s):
            self.look()

    def seen(self, words: str) -> list[psutil.Process]:
        """Those whose command line held ``words``."""
        with self._lock:
            return [process for process, line in self._seen.items() if words in line]

    def left(self, deadline_s: float) -> list[str]:
        """Wait until all are gone; the command lines of those that are not."""
        deadline = time.monotonic() + deadline_s
        while True:
            self.look()
            with self._lock:
                left = [f"{process.pid} {line}" for process, line in self._seen.items() if running(process)]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)
