"""Run the public ``vht`` command as a person would, and keep a transcript of what was run."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vht_federate.child_processes import end_with_parent
from vht_federate.errors import UnavailableError, VhtError, error_from_envelope
from vht_federate.processes import alive, stop_process, stop_tree

__all__ = ["Commands", "Service"]

_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def _program() -> list[str]:
    beside = Path(sys.executable).parent / "vht"
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "vht_federate"]


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """No signal may fall between the start of a child and the note of its pid."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_child() -> None:
    """Die with the parent, and take signals again (the mask is inherited through exec)."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    end_with_parent()


class Service:
    """A ``vht … serve`` process in its own session, with its output in a log file."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.name, self.process, self.log = name, process, log

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        if alive(self.pid):
            stop_tree(self.pid, patience_s=10.0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)

    def check(self) -> None:
        """Raises UnavailableError with the end of the log where the process is gone."""
        code = self.process.poll()
        if code is not None:
            tail = " | ".join(self.log.read_text(errors="replace").splitlines()[-3:])
            raise UnavailableError(
                f"{self.name} ended with exit code {code}: {tail}",
                code="VHT-UNAVAILABLE-SERVICE",
                hint=f"its whole log is {self.log}",
            )


class Commands:
    """Runs commands and services. Everything it started is stopped, by pid, when it closes."""

    def __init__(self, transcript: Path, environment: dict[str, str] | None = None) -> None:
        self._transcript = transcript
        self._environment = {**os.environ, **(environment or {})}
        self._services: list[Service] = []
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.RLock()
        self._closed = False

    def __enter__(self) -> "Commands":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, arguments: tuple[str, ...], background: bool) -> None:
        with self._lock, self._transcript.open("a") as file:
            file.write(f"vht {shlex.join(arguments)}{' &' if background else ''}\n")

    def _spawn(self, arguments: tuple[str, ...], **options: Any) -> "subprocess.Popen[Any]":
        return self._spawn_program([*_program(), *arguments], **options)

    def _spawn_program(self, program: list[str], **options: Any) -> "subprocess.Popen[Any]":
        if self._closed:
            raise UnavailableError("the commands were closed", code="VHT-UNAVAILABLE-CLOSED")
        return subprocess.Popen(
            program,
            stdin=subprocess.DEVNULL,
            env=self._environment,
            preexec_fn=_in_child,
            start_new_session=True,
            **options,
        )

    def run(self, *arguments: str, stream: bool = False, timeout_s: float = 1200.0) -> dict[str, Any]:
        """Run ``vht ARGUMENTS --json`` and return its data. ``stream`` lets its progress through to our stderr.

        Raises the typed error that the command ended with.
        """
        self._note(arguments, background=False)
        with _signals_held(), self._lock:
            process = self._spawn(
                ("--json", *arguments),
                stdout=subprocess.PIPE,
                stderr=None if stream else subprocess.PIPE,
                text=True,
            )
            self._running.add(process)
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            if process.poll() is None:
                stop_process(process.pid, patience_s=15.0)
            with self._lock:
                self._running.discard(process)
        try:
            envelope = json.loads(out.splitlines()[-1])
        except (IndexError, ValueError) as error:
            tail = " | ".join((err or "").splitlines()[-3:])
            raise VhtError(f"'vht {arguments[0]}' ended with exit code {process.returncode}: {tail}") from error
        if not envelope["ok"]:
            raise error_from_envelope(envelope["error"])
        data: dict[str, Any] = envelope["data"]
        return data

    def python(self, module: str, *arguments: str) -> Any:
        """Run a module of this installation beside the commands; the JSON of its last line.

        Raises VhtError with the end of what it said on stderr.
        """
        with _signals_held(), self._lock:
            process = self._spawn_program(
                [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            self._running.add(process)
        try:
            out, err = process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)
        if process.returncode:
            raise VhtError(f"{module} ended with exit code {process.returncode}: {' | '.join(err.splitlines()[-3:])}")
        return json.loads(out.splitlines()[-1])

    def serve(self, name: str, *arguments: str, log: Path) -> Service:
        """Start a service in the background. Call from the main thread: the service dies with the calling thread."""
        self._note(arguments, background=True)
        with log.open("ab") as file, _signals_held(), self._lock:
            service = Service(name, self._spawn(arguments, stdout=file, stderr=subprocess.STDOUT), log)
            self._services.append(service)
        return service

    def close(self) -> None:
        """Stop commands, then services, the last started first."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            stop_tree(process.pid)
        threads = [threading.Thread(target=service.stop) for service in reversed(self._services)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._services.clear()


def wait_until(ready: Any, service: Service, deadline_s: float) -> None:
    """Poll ``ready()`` until it is true. Raises UnavailableError where the service ends or the deadline passes."""
    deadline = time.monotonic() + deadline_s
    while not ready():
        service.check()
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"{service.name} was not ready after {deadline_s:.0f} s",
                code="VHT-UNAVAILABLE-SERVICE",
                hint=f"its log is {service.log}",
            )
        time.sleep(0.2)
