"""The guide "A federation by hand", walked by a shell as it stands, and held still before its last section, "Stop"."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from kit.documented_commands import ROOT, blocks
from kit.process_family import Family
from vht_federate.tcp_ports import LOOPBACK, free_ports

__all__ = ["GUIDE", "WalkedGuide", "guide_ports", "walked_guide"]

GUIDE = ROOT / "docs" / "guides" / "by-hand.md"
BIN = Path(sys.executable).parent
WALK_S = 1500.0
STOP_S = 120.0
PAUSE = "touch walked\nwhile [ ! -e go-on ]; do sleep 0.2; done"
# Where a service of the guide is told whom to connect to: the same, by way of the recorder of that connection.
CONNECTIONS = {
    "--issuer-url https://127.0.0.1:$ISSUER_PORT": "--issuer-url https://127.0.0.1:$ISSUER_RECORDER",
    "--coordinator 127.0.0.1:$COORDINATOR_PORT": "--coordinator 127.0.0.1:$COORDINATOR_RECORDER",
    'url = "https://127.0.0.1:$HOSPITAL_1_PORT"': 'url = "https://127.0.0.1:$HOSPITAL_1_RECORDER"',
    'url = "https://127.0.0.1:$HOSPITAL_2_PORT"': 'url = "https://127.0.0.1:$HOSPITAL_2_RECORDER"',
}
GENERATE = "vht data generate --hospitals 2"


@dataclass(frozen=True)
class WalkedGuide:
    """``folder``: where the reader walked; every service that the guide starts still runs."""

    folder: Path
    family: Family


def guide_ports() -> dict[str, int]:
    """A free port for each variable of the guide that names one."""
    names = re.findall(r"^(\w+_PORT)=", "\n".join(blocks(GUIDE)), re.MULTILINE)
    return dict(zip(names, free_ports(*[LOOPBACK] * len(names)), strict=True))


@contextmanager
def walked_guide(
    folder: Path, ports: Mapping[str, int], recorders: Mapping[str, int], canaries: Path
) -> Iterator[WalkedGuide]:
    """Walk the guide in ``folder`` up to "Stop", and on to its end when the block ends.

    ``recorders``: variables of ``CONNECTIONS``. ``canaries``: where the planted words are written. Fails with what the
    guide last said where a command of it fails, and where anything that it started is left after "Stop".
    """
    log = folder.parent / "guide.log"
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "140"}
    environment |= {name: str(port) for name, port in {**ports, **recorders}.items()}
    with log.open("wb") as out:
        reader = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", _script(canaries)],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        with Family(reader.pid) as family:
            _await_pause(reader, folder, log)
            yield WalkedGuide(folder, family)
            (folder / "go-on").touch()
            assert reader.wait(timeout=STOP_S) == 0, log.read_text()[-4000:]
            assert family.left(5) == []
        assert _left_of(folder) == []
    finally:
        _end(reader, folder)


def _script(canaries: Path) -> str:
    *walk, stop = blocks(GUIDE)
    assert stop.startswith("vht platform stop"), "the guide's last block is no longer the one that stops everything"
    script = "\n".join([*walk, PAUSE, stop])
    for direct, recorded in CONNECTIONS.items():
        assert direct in script, f"the guide no longer says {direct}"
        script = script.replace(direct, recorded)
    assert script.count(GENERATE) == 1
    return script.replace(GENERATE, f"{GENERATE} --canaries {canaries}")


def _await_pause(reader: "subprocess.Popen[bytes]", folder: Path, log: Path) -> None:
    deadline = time.monotonic() + WALK_S
    while not (folder / "walked").exists():
        assert reader.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, f"the guide took longer than {WALK_S:g} s: {log.read_text()[-2000:]}"
        time.sleep(0.2)


def _left_of(folder: Path) -> list[int]:
    """Processes that still run in ``folder``: whatever the script started works there, enclaves in a visit's own."""
    pids = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                pids.append(process.pid)
    return pids


def _end(reader: "subprocess.Popen[bytes]", folder: Path) -> None:
    """The reader's process group first, as a terminal would; what is left after a while by its pid."""
    if reader.poll() is None or _left_of(folder):
        with suppress(ProcessLookupError):
            os.killpg(reader.pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while (reader.poll() is None or _left_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in _left_of(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
