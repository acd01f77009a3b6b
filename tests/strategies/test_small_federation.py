"""Real SuperLink, executor, gateway, SuperNodes and warm executors on loopback; only the enclaves are stand-ins."""

import os
import signal
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from kit.hand_played_node import HandPlayedNode, hand_played_node
from kit.small_federation import SmallFederation, small_federation, wait_until
from kit.toy_enclave import ToyEnclave, add_one
from safetensors.numpy import load, save

from strategies.run_state import PID_FILE, Dispatch, DispatchNode, NodeState, RunDirectory, RunState
from strategies.study_run import FLOWER_APP
from vht_federate.domain.plan import EvaluationPlan, StudyPlan, TrainingPlan
from vht_federate.processes import PidFile, alive

pytestmark = pytest.mark.faults  # and what runs beside the faults on the same two hospitals

NAMES = ("hospital-1", "hospital-2")
INITIAL = save({"w": np.zeros(3, dtype=np.float32)})


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallFederation]:
    with small_federation(tmp_path_factory.mktemp("federation"), NAMES) as running_federation:
        yield running_federation


def submit(
    federation: SmallFederation,
    folder: Path,
    study: str,
    *,
    rounds: int,
    deadline_s: float,
    others: Mapping[str, int] | None = None,
) -> RunDirectory:
    members = {name: federation.nodes[name] for name in NAMES} | dict(others or {})
    directory = RunDirectory(folder)
    training = TrainingPlan(
        rounds=rounds, local_steps=1, sampling_rate=0.5, clipping_norm=1, noise_multiplier=1, learning_rate=0.1
    )
    dispatch = Dispatch(
        study_id=study,
        plan=StudyPlan(delta=1e-5, training=training, evaluation=EvaluationPlan(noise_multiplier=1)),
        nodes=tuple(DispatchNode(name=n, visit=f"v-{study}", flower_node=node) for n, node in members.items()),
        minimum_nodes=2,
        round_deadline_s=deadline_s,
        message_notification=federation.coordinator.message_notification.path,
        replies=federation.coordinator.replies.path,
    )
    states = {entry.name: NodeState(flower_node=entry.flower_node, visit=entry.visit) for entry in dispatch.nodes}
    directory.create(dispatch, INITIAL, RunState(study_id=study, state="requested", nodes=states))
    start(federation, directory)
    return directory


def start(federation: SmallFederation, directory: RunDirectory) -> int:
    return federation.coordinator.control.start_run(FLOWER_APP, {"run-directory": str(directory.path)})


@pytest.mark.federation
@pytest.mark.slow("real SuperLink and SuperNodes start first")
def test_two_hospitals_train_and_evaluate(federation: SmallFederation, tmp_path: Path) -> None:
    enclaves = [ToyEnclave(federation.enclaves[name], "v-both") for name in NAMES]
    directory = submit(federation, tmp_path / "run", "both", rounds=3, deadline_s=300)
    wait_until(lambda: directory.state().ended, "the run's end", 240)
    state = directory.state()
    assert (state.state, state.reason) == ("completed", "2 of 2 nodes took part to the end")
    assert load(directory.weights(3))["w"].tolist() == [3.0, 3.0, 3.0]
    for enclave in enclaves:
        assert enclave.calls == [("train", 1), ("train", 2), ("train", 3), ("evaluate", 1)]
        enclave.close()
    # Both answered every call with the same bytes: that costs neither a process nor a second question.
    assert all(process.poll() is None for started in federation.processes.values() for process in started)


@pytest.mark.federation
def test_a_hospital_reaches_no_control_or_runtime_path_and_needs_a_known_key(federation: SmallFederation) -> None:
    coordinator = federation.coordinator
    context = ssl.create_default_context(cafile=str(coordinator.config.ca))
    with httpx.Client(base_url=f"https://{coordinator.address}", verify=context, trust_env=False) as client:
        assert client.get("/health").json() == {"status": "ok", "service": "coordinator"}
        assert client.get("/identity").json()["evidence_key"] == coordinator.signing_key().public.jwk()
        for path in ("/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"):
            assert client.post(path, headers={"content-type": "application/protobuf"}).status_code == 404
        stranger = client.post("/v1/fleet/pull-messages", headers={"content-type": "application/protobuf"})
    assert stranger.status_code in (400, 401)


@pytest.mark.slow("a round's deadline has to pass")
def test_a_hospital_that_announces_a_reply_and_never_uploads_it_keeps_no_other_from_the_run(
    federation: SmallFederation, tmp_path: Path
) -> None:
    """Flower's own way to pull replies waits for that hospital longer than the deadline: ``test_grid_replies``."""
    with hand_played_node(federation, tmp_path, "hospital-silent") as silent:
        members = {name: federation.enclaves[name] for name in NAMES} | {"silent": silent.enclaves}
        enclaves = [ToyEnclave(folder, "v-silent") for folder in members.values()]
        others = {"hospital-silent": silent.node}
        directory = submit(federation, tmp_path / "run", "silent", rounds=2, deadline_s=30, others=others)
        question = silent.receive()
        silent.answer(question, upload=False)
        _no_hospital_speaks_for_the_coordinator(federation, silent, question.metadata.run_id)
        wait_until(lambda: directory.state().ended, "the run's end", 240)
    state = directory.state()
    assert (state.state, state.reason) == ("completed", "2 of 3 nodes took part to the end; lost: hospital-silent")
    assert sorted(state.rounds[0].outputs) == sorted(NAMES)
    assert state.nodes["hospital-silent"].code == "VHT-UNAVAILABLE-DEADLINE"
    assert load(directory.weights(2))["w"].tolist() == [2.0, 2.0, 2.0]
    for enclave in enclaves:
        enclave.close()


def _no_hospital_speaks_for_the_coordinator(federation: SmallFederation, hostile: HandPlayedNode, run: int) -> None:
    """Flower itself passes such a message on: to another hospital, which waits for its parts, or to the run."""
    coordinator = federation.coordinator
    for to in (federation.nodes[NAMES[0]], hostile.node, 1):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            hostile.send_as_coordinator(to, run)
        assert refused.value.response.status_code == 400
        assert refused.value.response.json()["error"]["code"] == "VHT-INPUT-REPLY"
    hostile.send_as_coordinator(hostile.node, run, socket=coordinator.superlink.socket)  # the control: no gateway
    assert hostile.next_announced()[0].metadata.src_node_id == 1


@pytest.mark.slow("a quarter of a round's deadline has to pass before an upload counts as given up")
def test_a_reply_that_is_lost_on_its_way_is_asked_for_again(federation: SmallFederation, tmp_path: Path) -> None:
    with hand_played_node(federation, tmp_path, "hospital-shaky") as shaky:
        members = {name: federation.enclaves[name] for name in NAMES} | {"shaky": shaky.enclaves}
        enclaves = [ToyEnclave(folder, "v-shaky") for folder in members.values()]
        others = {"hospital-shaky": shaky.node}
        directory = submit(federation, tmp_path / "run", "shaky", rounds=1, deadline_s=60, others=others)
        shaky.answer(shaky.receive(), upload=False)
        for _ in range(2):  # the first round again, then the evaluation
            shaky.answer(shaky.receive())
        wait_until(lambda: directory.state().ended, "the run's end", 240)
    state = directory.state()
    assert (state.state, state.reason) == ("completed", "3 of 3 nodes took part to the end")
    assert enclaves[-1].calls == [("train", 1), ("train", 1), ("evaluate", 1)]
    assert enclaves[0].calls == [("train", 1), ("evaluate", 1)]
    for enclave in enclaves:
        enclave.close()


@pytest.mark.slow("Flower misses a killed process after a minute")
def test_a_run_goes_on_after_its_server_app_was_killed(federation: SmallFederation, tmp_path: Path) -> None:
    hold, second = threading.Event(), threading.Event()

    def slow(header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        if (header["job"], header["round"]) == ("train", 2) and not hold.is_set():
            second.set()
            hold.wait(300)
        return add_one(header, body)

    enclaves = [ToyEnclave(federation.enclaves[name], "v-again", slow) for name in NAMES]
    directory = submit(federation, tmp_path / "run", "again", rounds=2, deadline_s=300)
    wait_until(second.is_set, "the second round", 90)
    server = PidFile(directory.path / PID_FILE)
    pid = server.running()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    hold.set()
    wait_until(lambda: server.running() is None, "the ServerApp's death")
    assert directory.state().state == "running"
    start(federation, directory)
    wait_until(lambda: directory.state().ended, "the run's end", 240)
    assert directory.state().state == "completed"
    assert [(phase.job, phase.round) for phase in directory.state().rounds] == [
        ("train", 1),
        ("train", 2),
        ("evaluate", 1),
    ]
    assert load(directory.weights(2))["w"].tolist() == [2.0, 2.0, 2.0]
    for enclave in enclaves:
        assert enclave.calls.count(("train", 1)) == 1
        enclave.close()


def test_a_killed_executor_and_a_killed_superlink_come_back(federation: SmallFederation) -> None:
    def child(program: str) -> psutil.Process | None:
        for process in psutil.Process(federation.service.pid).children():
            with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
                if any(program in part for part in process.cmdline()):
                    return process
        return None

    for program in ("strategies.server_executor", "strategies.superlink_process"):
        process = child(program)
        assert process is not None
        process.kill()
        wait_until(
            lambda p=program, old=process.pid: (new := child(p)) is not None and new.pid != old, f"{program} back"
        )
    wait_until(federation.coordinator.control.answers, "the SuperLink answering again", 60)
    assert set(federation.coordinator.control.nodes()) >= set(federation.nodes.values())


@pytest.mark.slow("Flower misses a killed process after a minute")
def test_a_hospital_killed_in_the_middle_ends_the_run_as_refused(federation: SmallFederation, tmp_path: Path) -> None:
    reached, killed = threading.Event(), threading.Event()

    def note(header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        reached.set()
        return add_one(header, body)

    def stuck(header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        reached.set()
        killed.wait(300)
        return add_one(header, body)

    enclaves = [
        ToyEnclave(federation.enclaves[name], "v-killed", answer)
        for name, answer in zip(NAMES, (note, stuck), strict=True)
    ]
    directory = submit(federation, tmp_path / "run", "killed", rounds=2, deadline_s=60)
    wait_until(reached.is_set, "the first round", 90)
    federation.kill(NAMES[1])
    killed.set()
    wait_until(lambda: directory.state().ended, "the run's end", 240)
    state = directory.state()
    assert state.state == "refused"
    assert state.error is not None
    assert state.error["code"] == "VHT-COHORT-NODES"
    assert state.nodes[NAMES[1]].code in ("VHT-UNAVAILABLE-DEADLINE", "VHT-UNAVAILABLE-NODE")  # whoever misses it first
    assert list(state.rounds[0].outputs) == [NAMES[0]]
    for enclave in enclaves:
        enclave.close()


@pytest.mark.federation
def test_ctrl_c_leaves_no_process_and_the_state_opens_again(federation: SmallFederation) -> None:
    children = [process.pid for process in psutil.Process(federation.service.pid).children(recursive=True)]
    assert len(children) >= 2
    os.kill(federation.service.pid, signal.SIGINT)
    federation.service.wait(60)
    assert not [pid for pid in children if alive(pid)]
    assert federation.coordinator.pid_file.running() is None
    assert set(federation.coordinator.enrolments()) >= set(NAMES)
