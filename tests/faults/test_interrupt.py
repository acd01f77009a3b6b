"""Ctrl-C at any moment: no process left, and the state directories still open."""

import os
import signal
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from vht_federate.evidence.keys import SigningKey
from vht_federate.evidence.log import EvidenceLog

pytestmark = pytest.mark.faults

VHT = str(Path(sys.executable).parent / "vht")


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("VHT_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.parametrize("moment_s", [1, 6, 14, 25, 40, 70])
@pytest.mark.parametrize("number", [signal.SIGINT])
def test_an_interrupted_demo_leaves_no_process_and_state_that_opens(
    tmp_path: Path, moment_s: int, number: signal.Signals
) -> None:
    mark = uuid.uuid4().hex
    out = tmp_path / "o"
    with (tmp_path / "log").open("wb") as log:
        demo = subprocess.Popen(
            [VHT, "demo", "--patients", "150", "--out", str(out)],
            env={**os.environ, "VHT_TEST_MARK": mark},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        time.sleep(moment_s)
        running = _marked(mark)
        demo.send_signal(number)
        code = demo.wait(60)
    assert running
    assert code == 130, (tmp_path / "log").read_text()[-2000:]
    deadline = time.monotonic() + 10
    while _marked(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [process.cmdline() for process in _marked(mark)] == []
    for state in sorted((out / "nodes").glob("*")) if (out / "nodes").exists() else []:
        if not (state / "evidence.key").exists():
            continue
        done = subprocess.run([VHT, "--json", "node", "status", str(state)], capture_output=True, text=True)
        assert done.returncode in (0, 2), done.stdout + done.stderr
        if (state / "evidence").exists():
            key = SigningKey.read(state / "evidence.key")
            with EvidenceLog(state / "evidence", key, state.name, lambda: datetime.now(UTC)) as again:
                assert len(list(again.entries())) == len(again)
