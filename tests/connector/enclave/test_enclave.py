import json
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from kit.enclave_visits import PLAN, SHIPPED, ZERO, Courier, RecordingGate, visit_spec, weights_of
from kit.hostile_table import Answered
from kit.places import TESTS
from kit.toy_enclave import TOKEN, ToyEnclave

from connector.enclave.host import EnclaveHost
from connector.enclave.waiting_calls import UNKNOWN
from vht_federate.errors import (
    ComponentError,
    EgressError,
    RefusedError,
    RevokedError,
    UnavailableError,
    VhtError,
    WireError,
)
from vht_federate.framing import Call, call_enclave, receive_frame
from vht_federate.processes import alive
from vht_federate.signing.canonical import canonical_bytes, sha256_hex

PATIENCE_S = 120.0  # for what takes a moment on a machine that does nothing else
WEIGHTS = {
    "linear.weight": np.zeros((1, 11), np.float32),
    "linear.bias": np.zeros(1, np.float32),
    "scale": np.ones((), np.float32),
}
PLANTED = """
import socket
from pathlib import Path

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(11, 1)
        self.scale = nn.Parameter(torch.ones(()))  # which the general engine alone can follow

    def forward(self, values):
        act(Path("mode").read_text(), values)
        return self.linear(values * float("nan")).squeeze(-1) * self.scale


def act(mode, values):
    print(values)
    if mode == "error":
        raise ValueError(f"bmi 31.4159 {values}")
    if mode == "network":
        try:
            socket.create_connection(("127.0.0.1", PORT), timeout=1)
        except Exception:
            pass


def build(component, profile):
    return Model()
"""


# --- a round ------------------------------------------------------------------------------------------------------


def test_a_study_runs_and_every_release_is_logged_before_it_leaves(courier: Courier, gate: RecordingGate) -> None:
    first = courier.call("train", 1)
    weights = weights_of(first)
    assert {name: value.shape for name, value in weights.items()} == {n: v.shape for n, v in ZERO.items()}
    assert first.result["steps"] == PLAN.training.local_steps
    assert (first.result["engine"], first.result["engine_why"]) == ("book-keeping", "")
    second = courier.call("train", 2, weights)
    assert second.result["patients_noised"] == first.result["patients_noised"]
    tables = courier.call("evaluate", 1, weights_of(second))
    assert len(tables.result["confusion"]) == 4
    assert len(tables.result["positives"]) == len(tables.result["negatives"]) == PLAN.evaluation.score_bins
    assert tables.tensors == b""
    assert gate.kinds() == ["begin", "release"] * 3
    output = canonical_bytes(first.result) + b"\n" + first.tensors
    assert gate.asked[1] == ("release", "v1", "train", 1, sha256_hex(output), len(output))


def test_an_exact_retry_gets_the_same_bytes_and_spends_nothing(courier: Courier, gate: RecordingGate) -> None:
    again = [courier.call("train", 1) for _ in range(3)]
    assert len({(json.dumps(reply.result), reply.tensors) for reply in again}) == 1
    assert gate.asked == []


def test_two_runs_on_the_same_patients_share_no_noise_and_asking_again_gives_nothing_to_average(
    courier: Courier, fresh
) -> None:
    _, other_courier, _, _, _ = fresh()
    reply, other_reply = courier.call("train", 1), other_courier.call("train", 1)
    assert reply.result["patients_noised"] != other_reply.result["patients_noised"]
    same = [np.sum(value == weights_of(other_reply)[name]) for name, value in weights_of(reply).items()]
    assert sum(same) <= 1  # of twelve in single precision: one pair may be equal by chance, once in millions of runs
    repeats = [weights_of(other_courier.call("train", 1)) for _ in range(20)]
    for name, value in weights_of(other_reply).items():
        assert np.array_equal(np.mean([weights[name] for weights in repeats], axis=0, dtype=np.float64), value)


def test_another_request_for_a_finished_round_is_refused(courier: Courier, gate: RecordingGate) -> None:
    with pytest.raises(RefusedError) as caught:
        courier.call("train", 1, {name: value + 1 for name, value in ZERO.items()})
    assert caught.value.code == "VHT-REFUSED-REPLAY"
    assert gate.asked == [("refused", "v1", "train", 1, "VHT-REFUSED-REPLAY")]


def test_weights_of_another_model_are_refused_before_anything_is_spent(courier: Courier, gate: RecordingGate) -> None:
    with pytest.raises(WireError) as caught:
        courier.call("train", 3, WEIGHTS)
    assert caught.value.code == "VHT-WIRE-WEIGHTS"
    assert gate.kinds() == ["refused"]


def test_a_gate_that_says_no_is_obeyed_and_its_reason_reaches_the_coordinator(
    courier: Courier, gate: RecordingGate
) -> None:
    gate.no["begin"] = RevokedError("the permit was revoked")
    with pytest.raises(RevokedError):
        courier.call("train", 3)
    assert gate.kinds() == ["begin"]  # the gate logs its own refusals


def test_a_release_that_is_refused_stays_inside_and_the_round_is_spent(courier: Courier, gate: RecordingGate) -> None:
    gate.no["release"] = EgressError("no", code="VHT-EGRESS-SECOND")
    with pytest.raises(EgressError):
        courier.call("train", 3)
    gate.no.clear()
    with pytest.raises(RefusedError) as caught:
        courier.call("train", 3)
    assert caught.value.code == "VHT-REFUSED-SPENT"
    assert gate.kinds() == ["begin", "release", "refused"]


# --- what couriers may send ---------------------------------------------------------------------------------------


def test_a_wrong_token_opens_nothing(courier: Courier, gate: RecordingGate) -> None:
    for token, code in (("x" * 43, "VHT-REFUSED-TOKEN"), ("\ud800", "VHT-WIRE-HEADER")):
        with pytest.raises(VhtError) as caught:
            courier.call("train", 2, token=token)
        assert caught.value.code == code
    assert "begin" not in gate.kinds()


@pytest.mark.parametrize(
    ("job", "round_", "tensors", "options", "code"),
    [
        ("train", 4, ZERO, {}, "VHT-REFUSED-UNPLANNED"),
        ("train", 0, ZERO, {}, "VHT-REFUSED-UNPLANNED"),
        ("train", 10**40, ZERO, {}, "VHT-REFUSED-UNPLANNED"),
        ("marginals", 1, ZERO, {}, "VHT-REFUSED-UNPLANNED"),
        ("../train", 1, ZERO, {}, "VHT-REFUSED-UNPLANNED"),
        ("evaluate", True, ZERO, {}, "VHT-WIRE-CALL"),
        ("evaluate", "1", ZERO, {}, "VHT-WIRE-CALL"),
        (["evaluate"], 1, ZERO, {}, "VHT-WIRE-CALL"),
        ("evaluate", 1, ZERO, {"visit": "v2"}, "VHT-REFUSED-VISIT"),
        ("evaluate", 1, ZERO, {"params": {"noise_multiplier": 1e-9}}, "VHT-REFUSED-REPLAY"),
        ("train", 3, b"not tensors", {}, "VHT-WIRE-TENSORS"),
        ("train", 3, struct.pack("<Q", 1 << 60) + b"{}", {}, "VHT-WIRE-TENSORS"),
    ],
)
def test_calls_outside_the_plan_or_the_contract_are_refused(
    courier: Courier, gate: RecordingGate, job, round_, tensors, options, code
) -> None:
    with pytest.raises(VhtError) as caught:
        courier.call(job, round_, tensors, **options)
    assert caught.value.code == code
    assert gate.kinds() == ["refused"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 12,
        struct.pack(">IQ", 2, 1 << 62) + b"{}",
        struct.pack(">IQ", 1 << 30, 0),
        struct.pack(">IQ", 2, 0) + b"[]",
        struct.pack(">IQ", 5, 0) + b"\xff\xfe\x00{}",
        struct.pack(">IQ", 4, 100) + b"{}  ",
        struct.pack(">IQ", 200_000, 0) + b"[" * 200_000,
    ],
)
def test_malformed_frames_are_refused_and_the_enclave_stays_up(courier: Courier, gate, garbage: bytes) -> None:
    answer = courier.raw(garbage)
    assert b'"ok":false' in answer or answer == b""
    assert courier.call("train", 1).result["steps"] == 4
    assert "begin" not in gate.kinds()


def test_what_an_enclave_leaves_on_disk_is_private_to_its_user_and_its_visit(standing, place: Path) -> None:
    run_dir = standing[2].run_dir
    paths = [*run_dir.iterdir(), *(place / "state" / "visits" / "v1").glob("*.sqlite*")]
    assert {path.name for path in paths} >= {"v1.sock", "v1.token", "replies.sqlite"}
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    token = (run_dir / "v1.token").read_text()
    command = " ".join(psutil.Process(standing[0].pid).cmdline())
    assert token not in command
    assert token not in str(psutil.Process(standing[0].pid).environ())


def test_the_enclave_has_no_network(standing) -> None:
    info = standing[0]
    assert psutil.Process(info.pid).net_connections(kind="inet") == []
    if "network-namespace" in info.walls:
        assert Path(f"/proc/{info.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()


def test_the_host_process_loads_no_torch() -> None:
    code = "import sys, connector.enclave.host; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_visit_has_one_enclave(standing, place: Path) -> None:
    with pytest.raises(RefusedError):
        standing[3].start(visit_spec(place / "other"), SHIPPED.folder, RecordingGate())
    assert standing[3].running() == ("v1",)


# --- what does not start ------------------------------------------------------------------------------------------


def test_one_changed_byte_of_the_component_refuses(fresh) -> None:
    def after_approval(spec):
        file = spec.folder.parents[2] / "component" / "card.md"
        raw = file.read_bytes()
        file.write_bytes(raw[:-2] + bytes([raw[-2] ^ 1]) + raw[-1:])
        return spec

    with pytest.raises(ComponentError) as caught:
        fresh((SHIPPED.folder / "model.py").read_text(), spec_of=after_approval)
    assert caught.value.code == "VHT-COMPONENT-DIGEST"


def test_an_enclave_that_is_not_ready_in_time_is_stopped(place: Path) -> None:
    root = Path(tempfile.mkdtemp(dir=place))
    host = EnclaveHost(root, start_timeout_s=0.0)
    with pytest.raises(UnavailableError):
        host.start(visit_spec(root / "state"), SHIPPED.folder, RecordingGate())
    assert host.running() == ()
    assert not list(root.glob("v1.*"))


# --- planted code -------------------------------------------------------------------------------------------------


def test_planted_code_gets_nothing_out_by_nan_by_its_errors_or_by_the_network(fresh) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        _, courier, gate, lost, _ = fresh(PLANTED.replace("PORT", str(server.getsockname()[1])))
        mode = courier.run_dir.parent / "state" / "visits" / "v1" / "mode"

        mode.write_text("nan")  # it trains on noise alone, and answers finite numbers
        trained = courier.call("train", 1, WEIGHTS)
        assert trained.result["engine"] == "torch.func"  # what torch loads late for it, the fence lets in
        weights = weights_of(trained)
        assert all(np.isfinite(value).all() for value in weights.values())
        assert np.isfinite(courier.call("evaluate", 1, weights).result["confusion"]).all()
        assert gate.kinds() == ["begin", "release"] * 2

        mode.write_text("error")  # its words hold a patient's value: nobody hears them, nor that it failed
        reply = courier.call("train", 2, WEIGHTS)
        assert all(np.isfinite(value).all() for value in weights_of(reply).values())
        assert b"31.4" not in str(reply.result).encode() + reply.tensors
        assert not any(b"31.4" in path.read_bytes() for path in courier.run_dir.parent.rglob("enclave.log"))
        assert lost.calls == []

        mode.write_text("network")  # it hides the refusal: the visit ends all the same
        with pytest.raises(EgressError) as caught:
            courier.call("train", 3, WEIGHTS)
        assert caught.value.code == "VHT-EGRESS-NETWORK"
        assert gate.kinds()[-1] == "refused"
        assert lost.happened.wait(PATIENCE_S)
        assert [error.code for _, error in lost.calls] == ["VHT-EGRESS-NETWORK"]
        with pytest.raises(TimeoutError):
            server.accept()


# --- ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_killed_enclave_is_reported_its_files_go_and_what_was_released_stays(fresh) -> None:
    info, courier, gate, lost, host = fresh()
    released = courier.call("train", 1)
    os.kill(info.pid, 9)
    assert lost.happened.wait(PATIENCE_S)
    assert [(visit, error.code) for visit, error in lost.calls] == [("v1", "VHT-UNAVAILABLE-ENCLAVE")]
    assert list(courier.run_dir.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        courier.call("train", 2)
    state = courier.run_dir.parent / "state"
    (state / "visits" / "v1" / "cohort").rename(state / "kept")
    spec = visit_spec(state)
    (spec.cohort / "cohort.safetensors").write_bytes((state / "kept" / "cohort.safetensors").read_bytes())
    gate.asked.clear()
    host.start(spec, SHIPPED.folder, gate)
    again = courier.call("train", 1)
    assert (again.result, again.tensors) == (released.result, released.tensors)
    assert gate.asked == []
    assert courier.call("train", 2).result["patients_noised"] == released.result["patients_noised"]

    for visit in ("v1", "v1", "never-was"):  # stopping comes to an end, is quiet, and may be repeated
        host.stop(visit)
    assert len(lost.calls) == 1
    assert list(courier.run_dir.iterdir()) == []


@pytest.mark.faults
def test_an_enclave_ends_with_its_connector(place: Path) -> None:
    root = Path(tempfile.mkdtemp(dir=place))
    code = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(TESTS)!r})
        from pathlib import Path
        from kit.enclave_visits import SHIPPED, RecordingGate, visit_spec
        from connector.enclave.host import EnclaveHost
        root = Path({str(root)!r})
        print(EnclaveHost(root).start(visit_spec(root / "state"), SHIPPED.folder, RecordingGate()).pid, flush=True)
        sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        worker = int(parent.stdout.readline())
        assert alive(worker)
        parent.kill()
    deadline = time.monotonic() + PATIENCE_S
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


# --- who keeps silent ---------------------------------------------------------------------------------------------


def _connected(courier: Courier, sent: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(courier.run_dir / "v1.sock"))
    connection.sendall(sent)
    return connection


@pytest.mark.hostile("silent")
def test_silent_connections_keep_no_call_waiting_and_the_oldest_of_too_many_goes(
    courier: Courier, answered: Answered
) -> None:
    header = json.dumps({"token": "wrong"}).encode()
    partial = [b"", b"\0\0", struct.pack(">IQ", 100, 0), struct.pack(">IQ", 100, 1 << 20) + b"{"]
    silent = [_connected(courier, partial[number % len(partial)]) for number in range(4 * UNKNOWN)]
    try:
        courier.call("train", 1)  # answered before, so that it costs no round; and while all of them wait
        with _connected(courier, struct.pack(">IQ", len(header), 1 << 20) + header) as stranger:
            stranger.settimeout(PATIENCE_S)
            answer, _ = receive_frame(stranger)  # without one byte of the body that it announced
        assert answer["error"]["code"] == "VHT-REFUSED-TOKEN"
        answered("calls are answered meanwhile")
        silent[0].settimeout(PATIENCE_S)
        assert silent[0].recv(1) == b""  # dropped; the control is the newest, which still waits
        silent[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[-1].recv(1)
    finally:
        for connection in silent:
            connection.close()


@pytest.mark.hostile("silent", control=True)
def test_control_whoever_reads_one_call_after_the_other_is_held_up_by_silence(tmp_path: Path) -> None:
    toy = ToyEnclave(tmp_path, "v1", lambda *_: ({}, b""))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
            silent.connect(str(tmp_path / "v1.sock"))
            with pytest.raises(UnavailableError):
                call_enclave(tmp_path / "v1.sock", TOKEN, Call("v1", "train", 1), timeout_s=1.0)
        assert call_enclave(tmp_path / "v1.sock", TOKEN, Call("v1", "train", 1), timeout_s=60.0).result is not None
    finally:
        toy.close()
