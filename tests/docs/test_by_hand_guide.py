"""The guide, walked: its blocks are one script, run in an empty folder; what it promises is there afterwards."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from doc_commands import ROOT, blocks
from family import Family

from vht_federate.evidence.trust import TrustFile
from vht_federate.evidence.verify import verify_bundle
from vht_federate.packaging.load import load_component
from vht_federate.serving import LOOPBACK, free_ports

pytestmark = pytest.mark.federation

GUIDE = ROOT / "docs" / "guides" / "by-hand.md"
READER = ROOT / "docs" / "quickstart" / "data-scientist.md"
BIN = Path(sys.executable).parent
LIMIT_S = 540.0


@pytest.fixture(scope="module")
def walked() -> Iterator[Path]:
    """The folder in which a reader walked the guide to its end. A short path: Unix sockets need one."""
    folder = Path(tempfile.mkdtemp(prefix="vht-hand-"))
    script = "\n".join(blocks(GUIDE))
    names = re.findall(r"^(\w+_PORT)=", script, re.MULTILINE)
    ports = dict(zip(names, map(str, free_ports(*[LOOPBACK] * len(names))), strict=True))
    environment = {**os.environ, **ports, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "140"}
    log = folder.with_suffix(".log")
    with log.open("wb") as out:
        reader = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        with Family(reader.pid) as family:
            code = reader.wait(timeout=LIMIT_S)
            assert code == 0, log.read_text()[-4000:]
            assert family.left(5) == []
        assert len(family.seen("connector.enclave.worker")) >= 2, "the guide's enclaves were not watched"
        assert _left_of(folder) == []
        yield folder
    finally:
        _stop(reader, folder)
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink(missing_ok=True)


def _left_of(folder: Path) -> list[int]:
    """Processes that still run in ``folder``: whatever the script started works there, enclaves in a visit's own."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _stop(reader: "subprocess.Popen[bytes]", folder: Path) -> None:
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


def test_the_evidence_of_the_guide_verifies_with_keys_from_outside(walked: Path) -> None:
    held = verify_bundle(walked / "run" / "bundle", TrustFile.read(walked / "trust.json"))
    assert held.run.completed
    assert held.run.present() == ["hospital-1", "hospital-2"]
    assert set(held.releases) == {"component", "cohort"}
    assert max(max(one.values()) for one in held.epsilon.values()) <= held.permit.epsilon
    assert (walked / "report.html").stat().st_size > 5000


def test_the_platform_of_the_guide_holds_both_releases(walked: Path) -> None:
    result = json.loads((walked / "run" / "result.json").read_text())
    assert result["publication"]["component"].startswith("cardio-risk")
    assert "cohort" in result["publication"]["cohort"]


def test_the_component_of_the_guide_predicts(walked: Path) -> None:
    component = load_component(walked / "run" / "release" / "cardio-risk")
    assert component.inputs[0] == "age"


def test_what_the_data_scientist_s_page_does_works_on_the_bundle_of_the_guide(walked: Path, tmp_path: Path) -> None:
    shutil.copytree(walked / "run" / "bundle", tmp_path / "bundle")
    shutil.copy(walked / "trust.json", tmp_path)
    python = "\n".join(blocks(READER, "python"))
    done = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mg/dL" in done.stdout
    views = [line for block in blocks(READER) for line in block.splitlines() if line.startswith("vht view")]
    assert views
    for line in views:
        done = subprocess.run([BIN / "vht", *line.split()[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
