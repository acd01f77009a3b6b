"""Ctrl-C while commands run side by side: they are stopped, not waited for."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.process_family import await_that

from deploy.commands import Commands
from deploy.demo.studies import terms_for
from deploy.local_federation import Hospital, LocalFederation
from vht_federate.errors import InputError


class Slow(Commands):
    """Each command runs until the commands are closed, or far too long; ``fails`` fails at once."""

    def __init__(self, transcript: Path) -> None:
        super().__init__(transcript)
        self.started, self.ended = threading.Event(), threading.Event()
        self.begun: list[str] = []
        self.in_time: list[bool] = []

    def run(self, *arguments: str, stream: bool = False, timeout_s: float = 500.0) -> dict[str, Any]:  # noqa: ARG002
        if arguments == ("fails",):
            raise InputError("it failed")
        self.begun.append(arguments[0])
        self.started.set()
        self.in_time.append(self.ended.wait(timeout_s))
        return {}

    def close(self) -> None:
        self.ended.set()
        super().close()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Where the tests were started in the background, a shell has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_stops_commands_that_run_side_by_side(tmp_path: Path) -> None:
    with Slow(tmp_path / "commands.sh") as commands:
        federation = LocalFederation(tmp_path, [Hospital("one", tmp_path)], terms_for(uci=False), commands)

        def interrupt() -> None:
            commands.started.wait(300)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            federation._run_all([("one",), ("two",), ("three",)])
    assert commands.begun
    await_that(lambda: len(commands.in_time) == len(commands.begun), 120, "the commands have ended")
    assert all(commands.in_time)


def test_one_failure_ends_the_others_and_is_what_is_told(tmp_path: Path) -> None:
    with Slow(tmp_path / "commands.sh") as commands:
        federation = LocalFederation(tmp_path, [Hospital("one", tmp_path)], terms_for(uci=False), commands)
        with pytest.raises(InputError, match="it failed"):
            federation._run_all([("fails",), ("two",)])
    await_that(lambda: len(commands.in_time) == len(commands.begun), 120, "the commands have ended")
    assert all(commands.in_time)
