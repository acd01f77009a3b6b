"""A hospital dies, or a permit is revoked, in the middle of a run."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from kit.hospital_processes import ROUND_DEADLINE_S, bring_back, processes_of
from kit.process_family import await_that, gone

from deploy.local_federation import LocalFederation
from vht_federate.client import Client
from vht_federate.errors import CohortError, RevokedError
from vht_federate.signing.keys import unverified_claims

pytestmark = [
    pytest.mark.faults, pytest.mark.slow("four hospitals are built, and a study run in each"),
]  # fmt: skip

ROUNDS = 6  # few, and enough that a test which is slow for some seconds is still in the middle
START_S = 300.0  # from the approvals to the first round's end, on a slow machine
UNHURRIED_S = 240.0  # a round's deadline where nobody has to be missed by it
ENCLAVE, SUPERNODE, EXECUTOR = "connector.enclave.worker", "flower-supernode", "strategies.warm_executor"


@dataclass(frozen=True)
class Study:
    """One study on the federation: its permit, and what each hospital's evidence log says of it."""

    federation: LocalFederation
    name: str
    permit: str
    file: Path

    @classmethod
    def planned(
        cls, federation: LocalFederation, name: str, minimum_nodes: int, deadline_s: float = ROUND_DEADLINE_S
    ) -> "Study":
        permit = federation.issue_permit(name, minimum_nodes=minimum_nodes)
        file = federation.write_study(
            name, permit=name, study={"id": name}, training={"rounds": ROUNDS, "local_steps": 4},
            privacy={"epsilon": 3.0}, federation={"round_deadline_s": deadline_s},
        )  # fmt: skip
        return cls(federation, name, permit, file)

    @property
    def out(self) -> Path:
        return self.federation.root / f"run-{self.name}"

    @property
    def run(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "run.json").read_text()))

    def entries(self, node: str) -> list[dict[str, Any]]:
        lines = (self.federation.node_state(node) / "evidence" / "log.jsonl").read_bytes().splitlines(keepends=True)
        entries = [json.loads(line) for line in lines if line.endswith(b"\n")]  # it may be written at this moment
        return [entry for entry in entries if entry["permit_id"] == self.permit]

    def kinds(self, node: str) -> list[str]:
        return [entry["kind"] for entry in self.entries(node)]

    def rounds(self, node: str, kind: str) -> list[int]:
        """Numbers of the training rounds for which ``node`` logged ``kind``."""
        bodies = [entry["body"] for entry in self.entries(node) if entry["kind"] == kind]
        return [body["round"] for body in bodies if body["job"] == "train"]

    def await_first_round(self, node: str) -> None:
        """``node`` has released one. The test fails at once where the run ends before."""

        def released() -> bool:
            return "round.released" in self.kinds(node)

        def ended() -> bool:
            return (self.out / "run.json").exists() and self.run["state"] not in ("requested", "running")

        await_that(lambda: released() or ended(), START_S, f"{node} releases the first round of {self.name}")
        assert released(), f"{self.name} ended before {node} had released a round"

    def spent(self, node: str) -> float:
        """Epsilon that this study's permit has cost the training patients of ``node``, by its own account."""
        account = self.federation.ledgers()[node]["permits"][self.permit]
        return float(account["spent"]["train"])


@dataclass(frozen=True)
class Killed:
    """What SIGKILL ended, and how far the victim had come."""

    lines: list[str]
    released: int
    running: str  # the run's state at that moment


def _kill(study: Study, name: str) -> Killed:
    """SIGKILL to every process of one hospital at once: connector, enclave, SuperNode, executor."""
    processes = processes_of(study.federation, name)
    lines = [" ".join(process.cmdline()) for process in processes]
    for process in reversed(processes):
        os.kill(process.pid, signal.SIGKILL)
    study.federation.services[name].process.wait(30)
    assert gone(processes, 30) == []
    return Killed(lines, study.kinds(name).count("round.released"), study.run["state"])


def _killed_in_the_middle(study: Study, victim: str, killed: list[Killed]) -> None:
    (kill,) = killed
    for part in (ENCLAVE, SUPERNODE, EXECUTOR, "node serve"):
        assert any(part in line for line in kill.lines), f"the kill found no {part}"
    assert kill.running == "running"
    assert 1 <= kill.released < ROUNDS
    assert study.kinds(victim).count("round.released") == kill.released
    lost = study.run["nodes"][victim]
    assert lost["code"] in ("VHT-UNAVAILABLE-DEADLINE", "VHT-UNAVAILABLE-NODE")
    assert len(lost["rounds"]) <= kill.released


def test_revoked_in_the_middle_no_node_contributes_to_the_next_round(federation: LocalFederation) -> None:
    """One hospital is held still between two rounds while the permit is revoked: the next round cannot end before.

    Whoever is asked after that has to see the revocation: the hospital that was held, by contributing nothing more;
    the others, who may have answered the round that it held open, by contributing to none beyond.
    """
    study = Study.planned(federation, "revoked-midway", 3, UNHURRIED_S)
    held_hospital, *others = [hospital.name for hospital in federation.hospitals]
    last: list[int] = []
    serial: list[int] = []

    def revoke() -> None:
        study.await_first_round(held_hospital)
        frozen = _freeze_between_rounds(study, held_hospital)
        try:
            last.extend(study.rounds(held_hospital, "round.released"))
            federation.commands.run("permit", "revoke", "--state", str(federation.root / "authority"), study.permit)
            with Client(federation.url("authority"), federation.ca) as client:
                listed = unverified_claims(client.request("GET", "/status-list").text.strip())
            assert study.permit in listed["revoked"]
            serial.append(listed["serial"])
        finally:
            for process in frozen:
                process.resume()

    with pytest.raises(RevokedError):
        federation.run_study(study.file, study.out, during=revoke)
    assert study.run["state"] == "revoked"
    assert max(last) < ROUNDS - 1, "the permit was revoked too late for the plan to tell"
    assert study.rounds(held_hospital, "round.released") == last
    assert "permit.revoked-seen" in study.kinds(held_hospital)
    for name in others:
        assert max(study.rounds(name, "round.begun"), default=0) <= max(last) + 1
        assert not {"evaluate", "marginals"} & {entry["body"].get("job") for entry in study.entries(name)}
    for name in (held_hospital, *others):
        bodies = [entry["body"] for entry in study.entries(name) if entry["kind"] in ("round.begun", "round.released")]
        assert all(body["status_serial"] < serial[0] for body in bodies), "judged by a list that says revoked"
        kinds = study.kinds(name)
        if "permit.revoked-seen" in kinds:
            seen_at = kinds.index("permit.revoked-seen")
            assert not {"round.begun", "round.released"} & set(kinds[seen_at:])
        assert study.spent(name) > 0, "spent budget stays spent"
        account = federation.ledgers()[name]["permits"][study.permit]
        assert account["reserved"]["train"] == pytest.approx(0, abs=1e-9)


def _freeze_between_rounds(study: Study, name: str) -> list[psutil.Process]:
    """Stop all processes of a hospital (SIGSTOP) at a moment when what it has begun has also been released."""
    deadline = time.monotonic() + 60
    while True:
        processes = processes_of(study.federation, name)
        for process in processes:
            process.suspend()
        await_that(
            lambda: all(process.status() == psutil.STATUS_STOPPED for process in processes),  # noqa: B023
            30,
            f"{name} stands still",
        )
        if study.rounds(name, "round.begun") == study.rounds(name, "round.released"):
            return processes
        for process in processes:
            process.resume()
        assert time.monotonic() < deadline, f"{name} was always in the middle of a round"
        time.sleep(0.05)


def test_a_killed_hospital_leaves_the_run_to_the_other_three_and_comes_back_with_its_spend(
    federation: LocalFederation,
) -> None:
    study = Study.planned(federation, "three-suffice", 3)
    victim = federation.hospitals[-1].name
    killed: list[Killed] = []

    def kill() -> None:
        study.await_first_round(victim)
        killed.append(_kill(study, victim))

    run = federation.run_study(study.file, study.out, during=kill)
    _killed_in_the_middle(study, victim, killed)
    assert run["state"] == "completed"
    assert list(run["lost"]) == [victim]
    assert sorted(run["participants"]) == sorted(h.name for h in federation.hospitals if h.name != victim)
    federation.commands.run("audit", "verify", str(study.out / "bundle"), "--trust", str(federation.trust))

    bring_back(federation, victim)
    assert study.spent(victim) > 0
    online = federation.commands.run("coordinator", "status", str(federation.root / "coordinator"))["nodes"]
    assert all(node["online"] for node in online)


def test_a_hospital_killed_where_four_must_take_part_ends_the_run_as_refused(federation: LocalFederation) -> None:
    study = Study.planned(federation, "four-or-none", 4)
    victim = federation.hospitals[-1].name
    killed: list[Killed] = []

    def kill() -> None:
        study.await_first_round(victim)
        killed.append(_kill(study, victim))

    with pytest.raises(CohortError) as caught:
        federation.run_study(study.file, study.out, during=kill)
    _killed_in_the_middle(study, victim, killed)
    assert caught.value.code == "VHT-COHORT-NODES"
    assert study.run["state"] == "refused"
    assert not (study.out / "bundle" / "release").exists()
