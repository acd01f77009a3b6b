"""The node as its operator runs it: ``vht node`` in real processes, over TLS, stopped in the middle."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kit.commands import vht_node
from kit.hospital import CANARY, DATASET, Hospital, await_that, make_hospital, write_fhir
from kit.served_node import Served

from connector.cli.output_tables import connection_lines
from connector.supernode import QUIET_FLOWER, SuperNode, commands
from vht_federate.errors import UnavailableError, VhtError
from vht_federate.evidence.log import EvidenceLog
from vht_federate.processes import alive
from vht_federate.signing.keys import SigningKey


@pytest.fixture
def served(hospital: Hospital) -> Iterator[Served]:
    vht_node("ingest", hospital.state, write_fhir(hospital.root / "fhir"))
    with hospital.open(start=False) as node:
        node.accounts.add("Dr Ada", "approver", "correct horse")
    served_node = Served(hospital)
    served_node.await_health()
    yield served_node
    if served_node.process.poll() is None:
        served_node.process.kill()
        served_node.process.communicate()


def _request(served: Served) -> dict[str, Any]:
    hospital = served.hospital
    body = {"permit": hospital.permit(), "study": hospital.study(), "user_key": hospital.user.public.jwk()}
    with served.client() as client:
        return dict(client.post("/visits", json=body, headers=hospital.headers()))


@pytest.mark.faults
def test_an_approved_visit_runs_in_a_real_enclave_and_ctrl_c_leaves_nothing_behind(served: Served) -> None:
    state = served.hospital.state
    with pytest.raises(UnavailableError) as caught:
        vht_node("serve", state)
    assert caught.value.code == "VHT-UNAVAILABLE-RUNNING"
    created_visit = _request(served)
    assert [visit["visit"] for visit in vht_node("visits", state)["visits"]] == [created_visit["visit"]]
    vht_node("approve", state, created_visit["visit"], "--operator", "Dr Ada")
    with served.client() as client:
        path = f"/visits/{created_visit['visit']}"

        def state_of_visit() -> str:
            headers = served.hospital.headers("GET", path, created_visit["token"])
            return str(client.get(path, headers=headers)["state"])

        await_that(lambda: state_of_visit() != "approved", 60)
        assert state_of_visit() == "ready"
    run_dir = Path((state / "run_dir").read_text().strip())
    assert {path.name for path in run_dir.iterdir()} == {
        f"{created_visit['visit']}.sock",
        f"{created_visit['visit']}.token",
    }
    children = psutil.Process(served.process.pid).children(recursive=True)
    assert children
    os.killpg(served.process.pid, signal.SIGINT)  # what a terminal's Ctrl-C does
    served.process.communicate(timeout=300)
    assert not [child for child in children if alive(child.pid)]
    assert not run_dir.exists()
    assert not list((state / "visits").iterdir())
    status = vht_node("status", state)
    assert (status["running"], status["visits"]) == (False, {"failed": 1})
    with EvidenceLog(state / "evidence", SigningKey.read(state / "evidence.key"), "hospital-1", _never) as log:
        assert [entry.kind for entry in log.entries()][-1] == "visit.closed"
    log_text = (state / "node.log").read_text()
    assert all(json.loads(line)["time"] for line in log_text.splitlines())
    assert CANARY not in log_text


def _never() -> Any:
    raise AssertionError


@pytest.mark.faults
def test_a_killed_node_takes_its_enclave_along_and_opens_again(served: Served) -> None:
    state = served.hospital.state
    created_visit = _request(served)
    vht_node("approve", state, created_visit["visit"], "--operator", "Dr Ada")
    await_that(lambda: vht_node("status", state)["visits"].get("ready") == 1, 60)
    children = psutil.Process(served.process.pid).children(recursive=True)
    run_dir = Path((state / "run_dir").read_text().strip())
    served.process.kill()
    served.process.communicate()
    await_that(lambda: not [child for child in children if alive(child.pid)])
    again = Served(served.hospital)
    try:
        again.await_health()
        assert not run_dir.exists()
        assert vht_node("status", state)["visits"] == {"failed": 1}
        assert vht_node("stop", state)["stopped"] is True
        again.process.communicate(timeout=300)
    finally:
        if again.process.poll() is None:
            again.process.kill()


def test_commands_work_beside_a_running_node_and_on_one_that_rests(served: Served) -> None:
    state, folder = served.hospital.state, served.hospital.root / "fhir"
    assert vht_node("ingest", state, folder)["duplicate"] == 90
    assert vht_node("opt-out", state, "p1")["recorded"] is True
    assert vht_node("opt-out", state, "p1", "--withdraw")["withdrawn"] is True
    budget = vht_node("status", state)["budget"]["datasets"][DATASET]
    assert (budget["cap"], budget["spent"]) == (3.0, {"train": 0.0, "test": 0.0})
    assert served.end() == 0
    assert vht_node("opt-out", state, "p1", "--withdraw")["withdrawn"] is False
    assert vht_node("ingest", state, folder)["duplicate"] == 90
    with pytest.raises(UnavailableError) as resting:
        vht_node("visits", state)
    assert resting.value.code == "VHT-UNAVAILABLE-NODE"
    assert vht_node("stop", state)["stopped"] is False


@pytest.mark.faults
@pytest.mark.parametrize("moment_s", [0.3, 1.5])
def test_a_signal_at_any_moment_of_the_start_leaves_a_directory_that_opens(hospital: Hospital, moment_s: float) -> None:
    served_node = Served(hospital)
    time.sleep(moment_s)
    served_node.end(signal.SIGINT)
    assert vht_node("status", hospital.state)["running"] is False
    with hospital.open() as node:
        assert node.run_dir.exists()


def test_init_keeps_every_key_and_refuses_what_is_no_key(hospital: Hospital) -> None:
    root, state = hospital.root, hospital.root / "second"
    line = (
        "init", state, "--name", "hospital-2", "--certificate", hospital.tls.certificate, "--key", hospital.tls.key,
        "--ca", hospital.tls.ca, "--issuer-key", root / "issuer.pub.json", "--issuer-url", hospital.issuer.url,
        "--dataset", "d2", "--categories", "51.1.a", "--coordinator", "127.0.0.1:9",
    )  # fmt: skip
    first, keys = vht_node(*line), {}
    for name in ("evidence.key", "supernode.key", "supernode.pub", "node.secret", "operator.token"):
        keys[name] = (state / name).read_bytes()
        assert name.endswith(".pub") or (state / name).stat().st_mode & 0o777 == 0o600
    assert keys["supernode.pub"].startswith(b"ecdsa-sha2-nistp384 ")
    second = vht_node(*line)
    assert (first["evidence_kid"], first["name"]) == (second["evidence_kid"], "hospital-2")
    assert {name: (state / name).read_bytes() for name in keys} == keys
    with pytest.raises(VhtError) as caught:
        vht_node(*[hospital.tls.ca if part == root / "issuer.pub.json" else part for part in line])
    assert caught.value.code == "VHT-INPUT-KEY"
    with pytest.raises(VhtError) as caught:
        vht_node(*["51.9.z" if part == "51.1.a" else part for part in line])
    assert caught.value.code == "VHT-INPUT-CATEGORY"


def test_a_directory_that_was_open_to_others_is_closed_with_all_that_a_node_writes(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        (tmp_path / "state").mkdir()
        (tmp_path / "state").chmod(0o755)
        hospital = make_hospital(tmp_path)
        assert hospital.state.stat().st_mode & 0o777 == 0o700
        hospital.state.chmod(0o755)
        served_node = Served(hospital)
        served_node.await_health()
        assert served_node.end() == 0
        hospital.issuer.stop()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    paths = [hospital.state, *(path for path in hospital.state.rglob("*") if path.name != "supernode.pub")]
    assert {"node.sqlite", "node.log", "log.jsonl", "node.toml"} <= {path.name for path in paths}
    assert not [path.name for path in paths if path.stat().st_mode & 0o077]


def test_flower_is_told_to_stay_silent_and_gets_its_own_home(tmp_path: Path) -> None:
    hospital = make_hospital(tmp_path, coordinator={"address": "127.0.0.1:9", "ca": "/ca.crt", "supernode_port": 9999})
    with hospital.open(start=False) as node:
        assert node.settings.coordinator is not None
        lines = commands(node.settings.coordinator, node.files, tmp_path / "run", tmp_path / "secret")
    hospital.issuer.stop()
    assert QUIET_FLOWER["FLWR_TELEMETRY_ENABLED"] == "0"
    assert QUIET_FLOWER["FLWR_DISABLE_UPDATE_CHECK"] == QUIET_FLOWER["UV_OFFLINE"] == "1"
    supernode = lines["supernode"]
    assert supernode[supernode.index("--node-config") + 1] == f'enclave-directory="{tmp_path / "run"}"'
    assert "--insecure" not in supernode
    assert str(hospital.state / "supernode.key") in supernode


def test_a_flower_process_that_ends_is_started_again_after_its_delay_and_stopped_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = make_hospital(tmp_path, coordinator={"address": "127.0.0.1:9", "ca": "/ca.crt", "supernode_port": 9999})
    hospital.issuer.stop()
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    ending = [sys.executable, "-c", "raise SystemExit(305 % 256)"]
    monkeypatch.setattr("connector.supernode.commands", lambda *_: {"supernode": ending, "executor": sleeper})
    with hospital.open(start=False) as node:
        assert node.settings.coordinator is not None
        run = tmp_path / "run"
        run.mkdir()
        supernode = SuperNode(node.settings.coordinator, node.files, run, restart_delay_s=0.2)
        supernode.start()
        await_that(lambda: supernode.status()["supernode"]["starts"] >= 3 and supernode.status()["executor"]["pid"])
        status = supernode.status()
        supernode.close()
    assert (status["executor"]["starts"], status["supernode"]["last_exit_code"]) == (1, 49)
    assert not alive(int(str(status["executor"]["pid"])))


REFUSAL = """\x1b[91mERROR\x1b[0m:     Exit Code: 305
Failed to initialize the connection to the SuperLink.
[code: 20] The SuperNode's public key is not registered.

For more information, visit: <https://flower.ai/docs>
"""


@pytest.mark.parametrize(
    ("said", "connection", "reason"),
    [
        (REFUSAL, "refused", "[code: 20] The SuperNode's public key is not registered."),
        (REFUSAL.replace("[code: 20] The SuperNode's public key is not registered.", "timed out"), "unreachable", None),
        ("\x1b[92mINFO\x1b[0m:      SuperNode ID: 6351801708316027774\n", "connected", ""),
        ("INFO :      Starting Flower SuperNode\n", "connecting", ""),
    ],
)
def test_the_status_says_whether_the_coordinator_let_the_supernode_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, connection: str, reason: str | None
) -> None:
    hospital = make_hospital(tmp_path, coordinator={"address": "127.0.0.1:9", "ca": "/ca.crt", "supernode_port": 9999})
    hospital.issuer.stop()
    then = "raise SystemExit(1)" if "Exit Code" in said else "time.sleep(600)"
    started = [sys.executable, "-c", f"import time; print({said!r}, flush=True); {then}"]
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr("connector.supernode.commands", lambda *_: {"supernode": started, "executor": sleeper})
    with hospital.open(start=False) as node:
        run = tmp_path / "run"
        run.mkdir()
        assert node.settings.coordinator is not None
        node.files.supernode_log.write_text("INFO :      SuperNode ID: 1, of a start before\n" + "x" * 1000)
        supernode = SuperNode(node.settings.coordinator, node.files, run, restart_delay_s=0.2)
        supernode.start()
        try:
            await_that(lambda: supernode.status()["supernode"]["connection"] == connection)
            starts = supernode.status()["supernode"]["starts"]
            if connection == "refused":  # while the next attempt is under way, the last refusal still stands
                await_that(lambda: int(str(supernode.status()["supernode"]["starts"])) > int(str(starts)))
                assert supernode.status()["supernode"]["connection"] == "refused"
            status = {"supernode": supernode.status(), "coordinator": "127.0.0.1:9"}
        finally:
            supernode.close()
    said_reason = reason if reason is not None else "timed out"
    line = connection_lines(status)[0]
    assert line == ", ".join(part for part in (f"coordinator 127.0.0.1:9: {connection}", said_reason) if part)


def test_a_supernode_is_started_anew_with_its_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SuperNode waits without end for the rest of a reply whose executor is gone."""
    hospital = make_hospital(tmp_path, coordinator={"address": "127.0.0.1:9", "ca": "/ca.crt", "supernode_port": 9999})
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr("connector.supernode.commands", lambda *_: {"supernode": sleeper, "executor": sleeper})
    with hospital.open(start=False) as node:
        run = tmp_path / "run"
        run.mkdir()
        assert node.settings.coordinator is not None
        supernode = SuperNode(node.settings.coordinator, node.files, run, restart_delay_s=0.2)
        supernode.start()
        try:
            await_that(lambda: all(process["pid"] for process in supernode.status().values()))
            before = supernode.status()
            os.kill(int(str(before["executor"]["pid"])), signal.SIGKILL)
            await_that(lambda: {process["starts"] for process in supernode.status().values()} == {2}, 60)
            await_that(lambda: not alive(int(str(before["supernode"]["pid"]))), 60)
        finally:
            supernode.close()
    hospital.issuer.stop()
