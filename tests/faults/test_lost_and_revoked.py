"""A hospital dies, or a permit is revoked, in the middle of a run."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.local import LocalFederation
from vht_federate.errors import CohortError, RevokedError

pytestmark = pytest.mark.faults

SHORT = {"rounds": 4, "local_steps": 4}


def _await(condition: Callable[[], bool], deadline_s: float) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def _visit(federation: LocalFederation, node: str, study: str) -> dict[str, Any]:
    with federation.operator(node) as client:
        (visit,) = [one for one in client.get("/api/visits")["visits"] if one["study_id"] == study]
    return dict(visit)


def _log_kinds(federation: LocalFederation, node: str) -> list[dict[str, Any]]:
    lines = (federation.node_state(node) / "evidence" / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _rounds_released(federation: LocalFederation, node: str, visit: str) -> int:
    entries = _log_kinds(federation, node)
    return sum(1 for e in entries if e["kind"] == "round.released" and e["visit"] == visit)


def _first_round_done(federation: LocalFederation, node: str, study: str) -> Callable[[], bool]:
    return lambda: _rounds_released(federation, node, _visit(federation, node, study)["visit"]) >= 1


def _kill_hospital(federation: LocalFederation, name: str) -> None:
    """SIGKILL to every process of one hospital at once: connector, enclave, SuperNode, executor."""
    top = psutil.Process(federation.services[name].pid)
    for process in [*top.children(recursive=True), top]:
        os.kill(process.pid, signal.SIGKILL)
    federation.services[name].process.wait(10)


def _study(federation: LocalFederation, name: str, minimum_nodes: int) -> tuple[str, Path]:
    permit = federation.issue_permit(name, minimum_nodes=minimum_nodes)
    study = federation.write_study(
        name, permit=name, study={"id": name}, training={**SHORT}, privacy={"epsilon": 3.0},
    )  # fmt: skip
    return permit, study


def test_revoked_in_the_middle_no_node_contributes_to_the_next_round(federation: LocalFederation) -> None:
    permit, study = _study(federation, "revoked-midway", 3)
    released: dict[str, int] = {}
    names = [hospital.name for hospital in federation.hospitals]

    def revoke() -> None:
        _await(_first_round_done(federation, names[0], "revoked-midway"), 120)
        federation.commands.run("permit", "revoke", "--state", str(federation.root / "authority"), permit)

    with pytest.raises(RevokedError):
        federation.run_study(study, federation.root / "run-revoked", during=revoke)
    run = json.loads((federation.root / "run-revoked" / "run.json").read_text())
    assert run["state"] == "revoked"
    for name in names:
        visit = _visit(federation, name, "revoked-midway")
        released[name] = _rounds_released(federation, name, visit["visit"])
        seen = [e for e in _log_kinds(federation, name) if e["visit"] == visit["visit"]]
        revoked_at = [i for i, e in enumerate(seen) if e["kind"] == "permit.revoked-seen"]
        if revoked_at:
            assert not [e for e in seen[revoked_at[0] :] if e["kind"] in ("round.begun", "round.released")]
        spent = next(iter(federation.ledgers()[name]["datasets"].values()))["spent"]["train"]
        assert spent > 0, "spent budget stays spent"
    assert max(released.values()) < SHORT["rounds"]
    assert any(e["kind"] == "permit.revoked-seen" for name in names for e in _log_kinds(federation, name))


def test_a_killed_hospital_leaves_the_run_to_the_other_three(federation: LocalFederation) -> None:
    _, study = _study(federation, "three-suffice", 3)
    victim = federation.hospitals[-1].name

    def kill() -> None:
        _await(_first_round_done(federation, victim, "three-suffice"), 120)
        _kill_hospital(federation, victim)

    run = federation.run_study(study, federation.root / "run-three", during=kill)
    assert run["state"] == "completed"
    assert victim in run["lost"]
    assert sorted(run["participants"]) == sorted(h.name for h in federation.hospitals if h.name != victim)
    federation.commands.run(
        "audit", "verify", str(federation.root / "run-three" / "bundle"), "--trust", str(federation.trust)
    )


def test_a_killed_hospital_comes_back_with_its_spend_and_joins_again_and_four_are_not_three(
    federation: LocalFederation,
) -> None:
    victim = federation.hospitals[-1].name
    federation._serve(victim, "node", "serve", str(federation.node_state(victim)))
    federation._await_health(victim)
    budget = federation.ledgers()[victim]
    assert next(iter(budget["datasets"].values()))["spent"]["train"] > 0
    coordinator = str(federation.root / "coordinator")

    def online() -> bool:
        nodes = federation.commands.run("coordinator", "status", coordinator)["nodes"]
        return all(node["online"] for node in nodes)

    _await(online, 180)
    _, study = _study(federation, "four-or-none", 4)

    def kill() -> None:
        _await(_first_round_done(federation, victim, "four-or-none"), 120)
        _kill_hospital(federation, victim)

    with pytest.raises(CohortError) as caught:
        federation.run_study(study, federation.root / "run-four", during=kill)
    assert caught.value.code == "VHT-COHORT-NODES"
    run = json.loads((federation.root / "run-four" / "run.json").read_text())
    assert run["state"] == "refused"
    assert not (federation.root / "run-four" / "bundle" / "release").exists()
