"""A run's directory survives crashes and tells the truth."""

import os
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kit.commands import exit_and_envelope
from kit.training_plans import TRAINING

from strategies.run_state import (
    PID_FILE,
    RESULT,
    STUDY_PID,
    Dispatch,
    DispatchNode,
    NodeState,
    RoundState,
    RunDirectory,
    RunState,
)
from vht_federate.domain.plan import StudyPlan
from vht_federate.errors import CohortError, InputError, RevokedError, UnavailableError
from vht_federate.framing import Reply
from vht_federate.processes import PidFile

PLAN = StudyPlan(delta=1e-5, training=TRAINING)


def make_run(folder: Path, names: tuple[str, ...] = ("a", "b"), initial: bytes = b"first") -> RunDirectory:
    directory = RunDirectory(folder)
    nodes = tuple(DispatchNode(name=name, visit=f"v-{name}", flower_node=n) for n, name in enumerate(names))
    dispatch = Dispatch(study_id="s", plan=PLAN, nodes=nodes, minimum_nodes=2, round_deadline_s=5)
    states = {node.name: NodeState(flower_node=node.flower_node, visit=node.visit) for node in nodes}
    directory.create(dispatch, initial, RunState(study_id="s", state="requested", nodes=states))
    return directory


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    directory = make_run(tmp_path)
    state = directory.state()
    state.rounds.append(
        RoundState(job="train", round=1, outputs={"a": "0" * 64}, seconds=1.5, finished_at=datetime.now(UTC))
    )
    directory.write_state(state)
    assert directory.state() == state
    assert directory.weights(0) == b"first"
    assert directory.dispatch().plan == PLAN


def test_a_run_that_an_earlier_version_dispatched_can_be_opened(tmp_path: Path) -> None:
    run, path = make_run(tmp_path), tmp_path / "dispatch.json"
    path.write_text(path.read_text().replace('"message_notification": null', '"doorbell": "/c/doorbell"'))
    assert "doorbell" in path.read_text()
    assert run.dispatch().message_notification == Path("/c/doorbell")


def test_a_run_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        make_run(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("process", [None, PID_FILE, STUDY_PID])
def test_a_run_that_nobody_goes_on_with_is_not_said_to_run(tmp_path: Path, process: str | None) -> None:
    directory = make_run(tmp_path)
    state = directory.state()
    state.state = "running"
    directory.write_state(state)
    with PidFile(tmp_path / process) if process else nullcontext():
        _, envelope = exit_and_envelope("study", "status", tmp_path)
    assert envelope["data"]["state"] == ("running" if process else "interrupted")
    assert ("vht study resume" in envelope["data"]["reason"]) is (process is None)
    (tmp_path / STUDY_PID).write_text(f"{os.getpid()} 1.0\n")  # what a killed process leaves, its number given away
    assert exit_and_envelope("study", "status", tmp_path)[1]["data"]["state"] == "interrupted"
    state.end("completed")
    directory.write_state(state)
    assert "the release is not" in exit_and_envelope("study", "status", tmp_path)[1]["data"]["reason"]
    (tmp_path / RESULT).write_text("{}")
    assert exit_and_envelope("study", "status", tmp_path)[1]["data"]["state"] == "completed"


def test_a_run_that_waits_for_operators_is_as_it_was_left(tmp_path: Path) -> None:
    directory = make_run(tmp_path)
    assert directory.interruption(directory.state())
    (tmp_path / "dispatch.json").unlink()
    assert exit_and_envelope("study", "status", tmp_path)[1]["data"]["state"] == "requested"


def test_a_write_that_was_cut_short_leaves_the_last_complete_state(tmp_path: Path) -> None:
    directory = make_run(tmp_path)
    (tmp_path / "run.json.partial").write_text('{"schema_version": "1", "study')
    assert directory.state().state == "requested"


def test_outputs_keep_the_bytes_that_arrived(tmp_path: Path) -> None:
    directory = make_run(tmp_path)
    directory.write_output("evaluate", 1, "a", Reply({"x": 0.1}, b"\x00tensors"))
    assert directory.outputs("evaluate", 1) == {"a": Reply({"x": 0.1}, b"\x00tensors")}
    assert directory.outputs("evaluate", 2) == {}


def test_the_first_reason_for_losing_a_node_stays() -> None:
    state = RunState(study_id="s", state="running", nodes={"a": NodeState(flower_node=1, visit="v")})
    state.lose("a", UnavailableError("late", code="VHT-UNAVAILABLE-DEADLINE"))
    state.lose("a", CohortError("other"))
    assert (state.nodes["a"].lost, state.nodes["a"].code) == ("late", "VHT-UNAVAILABLE-DEADLINE")
    assert state.taking_part() == []


def test_a_run_ends_with_the_exit_code_of_its_own_error() -> None:
    state = RunState(study_id="s", state="running")
    state.end("revoked", RevokedError("the permit is revoked"))
    with pytest.raises(RevokedError) as caught:
        state.raise_if_unsuccessful()
    assert caught.value.exit_code == 6
    state.end("refused", CohortError("two of four", code="VHT-COHORT-NODES"))
    with pytest.raises(CohortError) as refused:
        state.raise_if_unsuccessful()
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("content", [None, "", "[]", '{"state": "completed"}', '{"study_id": "s", "state": "happy"}'])
def test_a_folder_without_a_run_is_a_typed_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError) as caught:
        RunDirectory(tmp_path).state()
    assert caught.value.code == "VHT-INPUT-RUN"
