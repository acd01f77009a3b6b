"""The round loop: weighting, losing nodes, revocation, stopping, resuming."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.training_plans import TRAINING
from safetensors.numpy import load, save

from strategies.message_content import Answer
from strategies.rounds import Rounds
from strategies.run_state import Dispatch, DispatchNode, NodeState, RunDirectory, RunState
from vht_federate.domain.plan import CohortPlan, EvaluationPlan, StudyPlan
from vht_federate.errors import InputError, RevokedError, UnavailableError, VhtError, WireError
from vht_federate.framing import Call, Reply
from vht_federate.secagg.aggregate import next_weights, read_weights

NAMES = ("a", "b", "c")
INITIAL = save({"w": np.zeros(2, dtype=np.float32)})
COHORT = CohortPlan(one_way_noise_multiplier=1, sketch_noise_multiplier=1, two_way_noise_multiplier=1)
FULL = StudyPlan(delta=1e-5, training=TRAINING, evaluation=EvaluationPlan(noise_multiplier=1), cohort=COHORT)
Node = Callable[[Call], Reply]


def add(amount: float, patients: float = 100.0) -> Node:
    def node(call: Call) -> Reply:
        if call.job == "train":
            moved = {name: value + np.float32(amount) for name, value in load(call.tensors).items()}
            return Reply({"patients_noised": patients, "steps": 1}, save(moved))
        if call.job == "evaluate":
            return Reply({"confusion": [8, 2, 1, 9], "positives": [1, 9], "negatives": [8, 2]})
        return Reply({"tables": 1}, b"tables")

    return node


class Hospitals:
    """Answers as a federation would; a node is a function that may raise."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes, self.asked = dict(nodes), list[tuple[str, str, int]]()

    def ask(self, calls: Mapping[str, Sequence[Call]], phase: str) -> dict[str, list[Answer]]:
        del phase
        return {name: [self._one(name, call) for call in node_calls] for name, node_calls in calls.items()}

    def _one(self, name: str, call: Call) -> Answer:
        self.asked.append((name, call.job, call.round))
        try:
            reply = self.nodes[name](call)
        except VhtError as error:
            return Answer(None, error=error)
        return Answer(reply, reply.sha256())


def failing_at(job: str, round_: int, error: VhtError, otherwise: Node) -> Node:
    def node(call: Call) -> Reply:
        if (call.job, call.round) == (job, round_):
            raise error
        return otherwise(call)

    return node


def run(folder: Path, hospitals: Hospitals, *, plan: StudyPlan = FULL, minimum: int = 2, fresh: bool = True) -> Rounds:
    directory = RunDirectory(folder)
    nodes = tuple(DispatchNode(name=name, visit=f"v-{name}", flower_node=n) for n, name in enumerate(NAMES))
    if fresh:
        dispatch = Dispatch(study_id="s", plan=plan, nodes=nodes, minimum_nodes=minimum, round_deadline_s=5)
        states = {node.name: NodeState(flower_node=node.flower_node, visit=node.visit) for node in nodes}
        directory.create(dispatch, INITIAL, RunState(study_id="s", state="requested", nodes=states))
    return Rounds(
        directory,
        directory.dispatch(),
        directory.state(),
        hospitals,
        lambda: datetime(2030, 1, 1, tzinfo=UTC),
        choose_pairs=lambda: lambda _codebook, _tables: [["age", "male"]],
    )


def test_a_run_trains_evaluates_and_counts_in_the_planned_order(tmp_path: Path) -> None:
    hospitals = Hospitals({name: add(1) for name in NAMES})
    state = run(tmp_path, hospitals).play()
    assert state.state == "completed"
    assert [(job, number) for name, job, number in hospitals.asked if name == "a"] == [
        *(("train", number) for number in (1, 2, 3)),
        *(("evaluate", 1), ("marginals", 1), ("marginals", 2)),
    ]
    assert {(phase.job, phase.round) for phase in state.rounds} == set(FULL.calls())
    assert load(RunDirectory(tmp_path).weights(3))["w"].tolist() == [3.0, 3.0]
    assert state.evaluation is not None
    assert state.evaluation["mean"]["accuracy"] == 0.85


def test_nodes_weigh_by_their_noised_counts(tmp_path: Path) -> None:
    hospitals = Hospitals({"a": add(1, 300), "b": add(5, 100), "c": add(5, -40)})
    run(tmp_path, hospitals, plan=StudyPlan(delta=1e-5, training=TRAINING)).play()
    expected = (300 * 1 + 100 * 5 + 1 * 5) / 401
    assert load(RunDirectory(tmp_path).weights(1))["w"] == pytest.approx(expected)


def test_a_lost_node_is_named_and_never_asked_again(tmp_path: Path) -> None:
    late = UnavailableError("no answer", code="VHT-UNAVAILABLE-DEADLINE")
    hospitals = Hospitals({"a": add(1), "b": add(1), "c": failing_at("train", 2, late, add(1))})
    state = run(tmp_path, hospitals).play()
    assert state.state == "completed"
    assert state.reason == "2 of 3 nodes took part to the end; lost: c"
    assert state.nodes["c"].code == "VHT-UNAVAILABLE-DEADLINE"
    assert [call for call in hospitals.asked if call[0] == "c"] == [("c", "train", 1), ("c", "train", 2)]


def test_fewer_nodes_than_the_minimum_end_the_run_as_refused(tmp_path: Path) -> None:
    late = UnavailableError("no answer", code="VHT-UNAVAILABLE-DEADLINE")
    hospitals = Hospitals({"a": add(1), "b": add(1), "c": failing_at("train", 2, late, add(1))})
    state = run(tmp_path, hospitals, minimum=3).play()
    assert state.state == "refused"
    assert state.error is not None
    assert state.error["code"] == "VHT-COHORT-NODES"
    assert not (tmp_path / "weights/round-002.safetensors").exists()
    assert set(state.rounds[-1].outputs) == {"a", "b"}, "what left a node stays on record"


def test_a_revocation_ends_the_run_and_nobody_is_asked_again(tmp_path: Path) -> None:
    revoked = failing_at("train", 2, RevokedError("permit p is revoked"), add(1))
    hospitals = Hospitals({"a": add(1), "b": revoked, "c": add(1)})
    state = run(tmp_path, hospitals).play()
    assert state.state == "revoked"
    assert max(number for _, _, number in hospitals.asked) == 2
    assert set(state.rounds[-1].outputs) == {"a", "c"}
    assert not (tmp_path / "weights/round-002.safetensors").exists()


def test_a_run_asked_to_stop_says_so(tmp_path: Path) -> None:
    rounds = run(tmp_path, Hospitals({name: add(1) for name in NAMES}))
    rounds.directory.request_stop()
    assert rounds.play().state == "stopped"
    assert rounds.asker.asked == []  # type: ignore[attr-defined]


def test_a_run_goes_on_after_a_crash_where_it_stood(tmp_path: Path) -> None:
    def crash(call: Call) -> Reply:
        if (call.job, call.round) == ("train", 3):
            raise MemoryError
        return add(1)(call)

    with pytest.raises(MemoryError):
        run(tmp_path, Hospitals({"a": add(1), "b": add(1), "c": crash})).play()
    assert RunDirectory(tmp_path).state().state == "running"
    hospitals = Hospitals({name: add(1) for name in NAMES})
    state = run(tmp_path, hospitals, fresh=False).play()
    assert state.state == "completed"
    assert ("a", "train", 2) not in hospitals.asked
    assert ("a", "train", 3) in hospitals.asked
    assert load(RunDirectory(tmp_path).weights(3))["w"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    "tensors",
    [
        b"not safetensors",
        save({"v": np.zeros(2, dtype=np.float32)}),
        save({"w": np.zeros(3, dtype=np.float32)}),
        save({"w": np.zeros(2, dtype=np.float64)}),
        save({"w": np.array([0, np.nan], dtype=np.float32)}),
        save({"w": np.array([0, np.inf], dtype=np.float32)}),
    ],
)
def test_an_update_that_does_not_fit_loses_its_node(tensors: bytes, tmp_path: Path) -> None:
    with pytest.raises(WireError):
        read_weights(tensors, load(INITIAL))
    odd: Any = lambda _call: Reply({"patients_noised": 5.0}, tensors)  # noqa: E731
    state = run(tmp_path, Hospitals({"a": add(1), "b": add(1), "c": odd})).play()
    assert state.state == "completed"
    assert state.nodes["c"].code == "VHT-WIRE-WEIGHTS"
    assert load(RunDirectory(tmp_path).weights(1))["w"].tolist() == [1.0, 1.0]


def test_the_same_updates_give_the_same_bytes_in_any_order() -> None:
    rng = np.random.default_rng(1)
    updates = {name: {"w": rng.normal(size=50).astype(np.float32)} for name in NAMES}
    counts = {"a": 10.0, "b": 30.0, "c": 7.0}
    backwards = dict(reversed(updates.items()))
    weights = next_weights("full-noise-at-each-node", updates, counts)
    assert weights == next_weights("full-noise-at-each-node", backwards, counts)
    with pytest.raises(InputError):
        next_weights("hope", updates, counts)
