"""What the SuperNode says of its connection, in the log that Flower writes: its exit code alone says too little."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Connection", "read_connection"]

CONNECTED = "SuperNode ID:"
FAILED = "Failed to initialize the connection to the SuperLink."
HEAD_BYTES = 1 << 18  # of a start: what decides comes before the first round
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Connection:
    """``refused``: the coordinator said no, and ``reason`` is its word. ``unreachable``: it gave no answer."""

    state: Literal["connecting", "connected", "refused", "unreachable"]
    reason: str = ""


def read_connection(log: Path, start: int, previous: int, *, alive: bool) -> Connection:
    """The connection of the SuperNode whose output begins at byte ``start`` of ``log``; before it ran another.

    One that is being tried again after a failure counts as failed until it is connected.
    """
    if alive and CONNECTED in _text(log, start):
        return Connection("connected")
    for began in (start, previous):
        _, failed, rest = _text(log, began).rpartition(FAILED)
        if failed:
            reason = next((line.strip() for line in rest.splitlines() if line.strip()), "")
            return Connection("refused" if reason.startswith("[code:") else "unreachable", reason)
    return Connection("connecting")


def _text(log: Path, start: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(start)
            return _COLOUR.sub("", file.read(HEAD_BYTES).decode(errors="replace"))
    except OSError:
        return ""
