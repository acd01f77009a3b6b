"""A disk that takes no more: nothing half done takes effect, and the same command completes once there is room."""

import json
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.commands import Commands
from vht_federate.evidence.log import EvidenceLog
from vht_federate.signing.keys import SigningKey

pytestmark = pytest.mark.faults

VHT = str(Path(sys.executable).parent / "vht")


def _with_room_for(bytes_a_file: int, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run ``vht`` where no file may grow beyond so many bytes: the write fails as it would on a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, bytes_a_file))

    return subprocess.run([VHT, "--json", *arguments], preexec_fn=limit, capture_output=True, text=True)


def test_an_ingest_that_runs_out_of_room_leaves_the_last_complete_state(tmp_path: Path) -> None:
    state, data, pki = tmp_path / "node", tmp_path / "data", tmp_path / "pki"
    with Commands(tmp_path / "commands.sh") as commands:
        commands.run("data", "generate", "--hospitals", "1", "--patients", "200", "--seed", "5", "--out", str(data))
        commands.run("pki", "ca", "--out", str(pki))
        commands.run("pki", "cert", "--ca", str(pki), "--name", "h", "--out", str(pki / "h"))
        commands.run(
            "permit", "init", "--state", str(tmp_path / "authority"),
            "--certificate", str(pki / "h" / "h.crt"), "--key", str(pki / "h" / "h.key"),
        )  # fmt: skip
        commands.run(
            "node", "init", str(state), "--name", "h", "--certificate", str(pki / "h" / "h.crt"),
            "--key", str(pki / "h" / "h.key"), "--ca", str(pki / "ca.crt"),
            "--issuer-key", str(tmp_path / "authority" / "issuer.pub.json"), "--issuer-url", "https://127.0.0.1:1",
            "--dataset", "urn:vht:h:ehr", "--categories", "51.1.a",
        )  # fmt: skip
        folder = str(data / "hospital-1")
        failed = _with_room_for(60_000, "node", "ingest", str(state), folder)
        assert failed.returncode != 0
        envelope = json.loads(failed.stdout.splitlines()[-1])
        assert envelope["ok"] is False
        assert envelope["error"]["code"] == "VHT-UNAVAILABLE-DISK"
        report = commands.run("node", "ingest", str(state), folder)
        lines = sum(len(path.read_bytes().splitlines()) for path in Path(folder).glob("*.ndjson"))
        assert report["lines"] == lines == report["accepted"] + report["quarantined"] + report["duplicate"]
        assert report["accepted"] > 0.9 * lines


def test_a_log_that_cannot_be_written_accepts_nothing_more_and_opens_again(tmp_path: Path) -> None:
    key = SigningKey.create(tmp_path / "k.key")
    script = (
        "import resource, sys\n"
        "from datetime import UTC, datetime\nfrom pathlib import Path\n"
        "from vht_federate.signing.keys import SigningKey\nfrom vht_federate.evidence.log import EvidenceLog\n"
        f"log = EvidenceLog(Path({str(tmp_path / 'log')!r}), SigningKey.read(Path({str(tmp_path / 'k.key')!r})), 'h',"
        " lambda: datetime.now(UTC))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        "done = 0\n"
        "try:\n"
        "    while True:\n"
        "        log.append('node.started', {'n': done}); done += 1\n"
        "except OSError:\n"
        "    pass\n"
        "try:\n"
        "    log.append('node.started', {'n': -1}); sys.exit('took effect')\n"
        "except Exception as error:\n"
        "    print(done, getattr(error, 'code', type(error).__name__), flush=True)\n"
        "import os; os._exit(0)\n"
    )
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    count, code = completed.stdout.split()
    assert int(count) > 2, completed.stderr
    assert code == "VHT-UNAVAILABLE-LOG"
    with EvidenceLog(tmp_path / "log", key, "h", lambda: datetime.now(UTC)) as again:
        assert [entry.body["n"] for entry in again.entries()] == list(range(int(count)))
        again.append("node.started", {"n": "after"})
