"""Ctrl-C at any moment: no process left, and the state directories still open."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from kit.process_family import Family, await_that, gone

from vht_federate.evidence.log import EvidenceLog
from vht_federate.signing.keys import SigningKey

pytestmark = [
    pytest.mark.faults, pytest.mark.slow("a demo, up to the moment of its interrupt"),
]  # fmt: skip

VHT = str(Path(sys.executable).parent / "vht")
HOSPITALS = 2  # as many processes of each kind as show that none is left
PAGES_ARE_UP = "Ctrl-C stops everything"
REACHED_S = 1500.0  # from the start of the demo to the last of the moments, on a slow machine
ENCLAVE = "connector.enclave.worker"


@dataclass(frozen=True)
class Demo:
    """A demo that runs: its folder and what it has said so far."""

    out: Path
    log: Path

    def said(self, words: str) -> bool:
        return words in self.log.read_text(errors="replace")

    def rounds(self) -> int:
        """Phases on record in ``run.json``, which is replaced as a whole."""
        try:
            return len(json.loads((self.out / "run" / "run.json").read_text())["rounds"])
        except FileNotFoundError:
            return 0


def _at_once(_: Demo) -> bool:
    return True


def _while_data_are_made(demo: Demo) -> bool:
    return (demo.out / "demo.pid").exists()


def _while_states_are_made(demo: Demo) -> bool:
    return (demo.out / "pki" / "ca.crt").exists()


def _while_hospitals_start(demo: Demo) -> bool:
    return demo.said(f"starting {HOSPITALS} hospitals")


def _while_operators_approve(demo: Demo) -> bool:
    return (demo.out / "run" / "run.json").exists()


def _between_rounds(demo: Demo) -> bool:
    return demo.rounds() >= 1


MOMENTS = (
    _at_once,
    _while_data_are_made,
    _while_states_are_made,
    _while_hospitals_start,
    _while_operators_approve,
    _between_rounds,
)


def _marked(mark: str) -> list[psutil.Process]:
    """Processes with the demo's environment: those, too, that started too late to be seen as its descendants."""
    processes = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("VHT_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return processes


def _interruptible() -> None:
    """A shell starts its background jobs with SIGINT ignored, and children inherit that: not this one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path: Unix sockets do not like pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="vht-int-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__.strip("_").replace("_", " "))
def test_an_interrupted_demo_leaves_no_process_and_state_that_opens(
    place: Path, moment: Callable[[Demo], bool]
) -> None:
    """With --keep, so that a demo that was faster than this test is still there to be interrupted."""
    mark, run = uuid.uuid4().hex, Demo(place / "o", place / "log")
    with run.log.open("wb") as log:
        demo = subprocess.Popen(
            [VHT, "demo", "--keep", "--hospitals", str(HOSPITALS), "--patients", "150", "--out", str(run.out)],
            env={**os.environ, "VHT_TEST_MARK": mark},
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_interruptible,
        )
    try:
        with Family(demo.pid) as family:
            await_that(lambda: moment(run) or demo.poll() is not None, REACHED_S, moment.__name__)
            assert demo.poll() is None, run.log.read_text()[-2000:]
            family.look()
            begun = (run.out / ".vht-demo").exists()
            demo.send_signal(signal.SIGINT)
            code = demo.wait(600)
            left = family.left(15)
        marked = gone(_marked(mark), 15)
    finally:
        _end(demo, mark)
    expected = {130}
    if not begun:
        expected |= {-signal.SIGINT, 1}  # Python before the command: ended by the signal, with 1 while it starts itself
    if run.said(PAGES_ARE_UP):
        expected |= {0}  # all was done
    assert code in expected, run.log.read_text()[-2000:]
    assert left == []
    assert [process.cmdline() for process in marked] == []
    if moment is _between_rounds:
        assert len(family.seen(ENCLAVE)) >= HOSPITALS, "the processes that hold patients' records were not watched"
    _assert_that_states_open(run.out)


def _end(demo: "subprocess.Popen[bytes]", mark: str) -> None:
    """Nothing of a demo outlives its test, even where the test fails."""
    if demo.poll() is None:
        demo.terminate()
        time.sleep(5)
    for process in _marked(mark):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    demo.wait(30)


def _assert_that_states_open(out: Path) -> None:
    for state in sorted((out / "nodes").glob("*")):
        if not (state / "evidence.key").exists():
            continue
        completed = subprocess.run([VHT, "--json", "node", "status", str(state)], capture_output=True, text=True)
        assert completed.returncode in (0, 2), completed.stdout + completed.stderr
        if (state / "evidence").exists():
            key = SigningKey.read(state / "evidence.key")
            with EvidenceLog(state / "evidence", key, state.name, lambda: datetime.now(UTC)) as again:
                assert len(list(again.entries())) == len(again)
