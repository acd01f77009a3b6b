"""What walls this machine gives an enclave: found by raising all of them around a process that does nothing.

As a program: ``python -m connector.enclave.isolation_probe FOLDER`` prints them as JSON.
"""

import functools
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from connector.enclave.isolation import Isolation, close_off
from connector.enclave.runtime_files import enclave_view
from vht_federate.domain.isolation import IsolationLevel

__all__ = ["OfferedIsolation", "offered_isolation"]

_DEADLINE_S = 60.0
_NO_FILTER = "no filter of system calls: seccomp on x86_64 or aarch64, Linux 3.17 or later"
_NO_VIEW = "no view of files: Landlock (Linux 5.13), or user and mount namespaces (Linux 5.12)"


@dataclass(frozen=True)
class OfferedIsolation:
    """``missing``: for people, what this machine lacks of a sandbox."""

    level: IsolationLevel
    walls: tuple[str, ...]
    missing: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        return {"level": self.level.value, "walls": list(self.walls), "missing": list(self.missing)}


def offered_isolation() -> OfferedIsolation:
    """Walls that could not be raised are not offered."""
    try:
        walls = _walls()
    except (OSError, subprocess.SubprocessError, ValueError):
        walls = ()
    isolation = Isolation(walls)
    lacks = {
        _NO_FILTER: "seccomp" not in walls,
        _NO_VIEW: "own-root" not in walls and not any(wall.startswith("landlock") for wall in walls),
    }
    return OfferedIsolation(isolation.level, walls, tuple(reason for reason, holds in lacks.items() if holds))


@functools.cache
def _walls() -> tuple[str, ...]:
    """Asked once in the life of a process: what a machine gives does not change while it runs."""
    with tempfile.TemporaryDirectory(prefix="vht-probe-") as folder:
        probe = subprocess.run(
            [sys.executable, "-P", "-B", "-m", "connector.enclave.isolation_probe", folder],
            capture_output=True, stdin=subprocess.DEVNULL, timeout=_DEADLINE_S, cwd=folder, check=True,
        )  # fmt: skip
        return tuple(json.loads(probe.stdout))


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0])
    view = enclave_view(folder, folder / "component", closed=folder / "state")
    print(json.dumps(close_off(view, "probe").walls))


if __name__ == "__main__":
    main(sys.argv[1:])
