"""Pid files and stopping by pid: nothing here looks for processes by name."""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from vht_federate.errors import UnavailableError

__all__ = ["PidFile", "alive", "stop_process", "stop_tree"]


def alive(pid: int) -> bool:
    """True for a process that runs (a zombie does not)."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def stop_process(pid: int, *, patience_s: float = 5.0) -> None:
    """SIGTERM, then SIGKILL after ``patience_s``. A process that is gone is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    if alive(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def stop_tree(pid: int, *, patience_s: float = 5.0) -> None:
    """Stop a process, then whatever it had started and left behind."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    stop_process(pid, patience_s=patience_s)
    for child in children:
        if child.is_running():
            stop_process(child.pid, patience_s=1.0)


class PidFile:
    """One running process per state directory: ``with PidFile(path): serve``.

    The file holds the pid and the process's start time, so that a number that was given to another process after a
    crash is not taken for ours. Of several processes that start at once, one gets it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def running(self) -> int | None:
        """The pid of the process that holds this file, or None."""
        try:
            pid, started = self.path.read_text().split()
            same = abs(psutil.Process(int(pid)).create_time() - float(started)) < 1.0
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None
        return int(pid) if same and alive(int(pid)) else None

    def listens(self, *ports: int) -> bool:
        """True once that very process listens on every one of these TCP ports: another's answer is not ours."""
        pid = self.running()
        try:
            connections = psutil.Process(pid).net_connections(kind="tcp") if pid is not None else []
        except psutil.Error:
            return False
        listening = {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
        return bool(ports) and listening.issuperset(ports)

    def __enter__(self) -> "PidFile":
        """Raises UnavailableError VHT-UNAVAILABLE-RUNNING where another process holds the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            pid = self.running()
            if pid is not None:
                raise UnavailableError(
                    f"process {pid} already runs in this directory",
                    code="VHT-UNAVAILABLE-RUNNING",
                    hint="stop it first, or use another directory",
                )
            self.path.write_text(f"{os.getpid()} {psutil.Process().create_time()}\n")
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else looks and writes in between; the lock goes with the process that holds it, however it ends."""
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
