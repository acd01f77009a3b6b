"""A process that closes itself off as an enclave does, on this machine or on one that lacks something, and then acts.

What a machine lacks is taken away in the kernel, by a filter of system calls that answers as a kernel without it does:
the code under test is what ships, and the wall is down on purpose.
"""

import json
import os
import platform
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from errno import errorcode
from pathlib import Path

import pytest

from connector.enclave.isolation_probe import offered_isolation
from connector.enclave.syscall_filter import ARCHITECTURES
from kit.other_syscalls import OTHERS

TAKEN_AWAY = {
    "landlock": {"landlock_create_ruleset": 38},  # ENOSYS
    "namespaces": {"unshare": 1},  # EPERM
    "seccomp": {"seccomp": 38},
    "own-user": {"setresuid": 1},
    "no-privileges": {"capset": 1},
}
NOTHING_HOLDS = ("landlock", "namespaces", "seccomp")
FILES_OPEN = ("landlock", "namespaces")
SECRET = "5f2d canary of the connector"

_LACKING = """
import json, sys
from connector.enclave.syscall_filter import ARCHITECTURES, load_program
import platform
program = json.loads(sys.argv[1])
if program:
    assert load_program([tuple(step) for step in program], ARCHITECTURES[platform.machine()])
del sys.argv[1]
"""
_CLOSED = """
import ctypes, os
from pathlib import Path
from connector.enclave.isolation import close_off
from connector.enclave.runtime_files import enclave_view
own, state, outside, victim, port = *map(Path, sys.argv[1:4]), int(sys.argv[4]), int(sys.argv[5])
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(own)
walls = close_off(enclave_view(own, own / "component", closed=state), "v1").walls
got = None
try:
    exec(sys.argv[6])
except BaseException as error:
    got = None
    print(type(error).__name__, error, file=sys.stderr)
print(json.dumps({"walls": walls, "got": got}))
"""


@dataclass(frozen=True)
class Outcome:
    """``got``: what the act brought home, None where it failed; ``said``: of its error."""

    walls: tuple[str, ...]
    got: object
    said: str

    @property
    def refusal(self) -> str:
        """What answered, in a word or two: the kernel's error where Python raised one."""
        last = self.said.strip().splitlines()[-1] if self.said.strip() else "the call failed"
        number = re.search(r"\[Errno (\d+)\]", last)
        return errorcode[int(number[1])] if number else last.split(" ", 1)[0] if "Error" in last else last[:40]


def need_walls(*names: str) -> None:
    """Skip where this machine lacks one of them, with the reason; fail where CI=true."""
    walls = offered_isolation().walls
    lacking = [name for name in names if not any(wall.startswith(name) for wall in walls)]
    if lacking:
        reason = f"this machine has no {', '.join(lacking)}: {'; '.join(offered_isolation().missing)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def lacking(*facilities: str) -> list[tuple[int, int, int, int]]:
    """A filter that answers as a kernel without ``facilities`` does, and allows the rest."""
    architecture = ARCHITECTURES[platform.machine()]
    program = [(0x20, 0, 0, 0)]
    for facility in facilities:
        for name, errno in TAKEN_AWAY[facility].items():
            program += [(0x15, 0, 1, OTHERS[name][architecture.column]), (0x06, 0, 0, 0x00050000 | errno)]
    return [*program, (0x06, 0, 0, 0x7FFF0000)] if facilities else []


def on_machine_without(facilities: tuple[str, ...], code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python ``code`` on a machine that lacks ``facilities``; its ``sys.argv[1:]`` are ``arguments``."""
    return subprocess.run(
        [sys.executable, "-c", _LACKING + textwrap.dedent(code), json.dumps(lacking(*facilities)), *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "CONNECTOR_SECRET": SECRET},
    )  # fmt: skip


@dataclass(frozen=True)
class Surroundings:
    """What lies beside a visit: the node's state with its keys, an export, and a place to write to."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def own(self) -> Path:
        return self.state / "visits" / "v1"

    @property
    def outside(self) -> Path:
        return self.root / "outside"

    @property
    def key(self) -> Path:
        return self.state / "evidence.key"

    @classmethod
    def make(cls, root: Path) -> "Surroundings":
        made = cls(root)
        made.own.mkdir(parents=True)
        made.outside.mkdir()
        made.state.chmod(0o700)
        made.key.write_text("the node's signing key")
        made.key.chmod(0o600)
        (made.outside / "Patient.ndjson").write_text('{"id": "p1"}')
        return made

    def act(self, act: str, *, without: tuple[str, ...] = (), victim: int = 0, port: int = 0) -> Outcome:
        """What ``act`` gets behind the walls of a machine ``without`` some facilities."""
        places = (str(self.own), str(self.state), str(self.outside))
        done = on_machine_without(without, _CLOSED, *places, str(victim), str(port), textwrap.dedent(act))
        if not done.stdout.strip():  # the process became another program, or was ended
            return Outcome((), None, done.stderr)
        answer = json.loads(done.stdout.splitlines()[-1])
        return Outcome(tuple(answer["walls"]), answer["got"], done.stderr)
