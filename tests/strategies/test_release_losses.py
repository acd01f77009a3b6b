"""What goes wrong at one hospital after the last round costs the release that hospital, and no more."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kit.planned_studies import planned_study

from strategies import release
from strategies.run_state import NodeState, RunDirectory, RunState
from vht_federate.errors import (
    CohortError,
    RefusedError,
    RevokedError,
    UnavailableError,
    VerificationError,
    VhtError,
    WireError,
)
from vht_federate.evidence.bundle import BundleParts
from vht_federate.signing.keys import SigningKey

NAMES = ("h1", "h2", "h3")
ARTEFACTS = {"component": "ab" * 32, "cohort": "cd" * 32}
STOPPED = RefusedError("h3: stopped by the operator: a repair", code="VHT-REFUSED-STOPPED")
LOSSES = [
    RefusedError("this visit is halted", code="VHT-REFUSED-STOPPED"),
    VerificationError("the log was cut", code="VHT-VERIFY-LOG-BEHIND"),
    RefusedError("the proof is of another time", code="VHT-REFUSED-PROOF"),
    UnavailableError("it is down", code="VHT-UNAVAILABLE-PEER"),
    WireError("no JSON", code="VHT-WIRE-HTTP"),
]


class Hospitals:
    """Three visits; ``errors`` are what each raises, ``halted`` what it says of a visit that it ended."""

    def __init__(self, **errors: VhtError) -> None:
        self.errors, self.halted = errors, dict[str, VhtError]()
        self.by_node = dict.fromkeys(NAMES)
        self.exports: dict[str, Any] = {name: log(name, "visit.closed") for name in NAMES}

    def acknowledge(self, node: str, kind: str, sha256: str) -> str:
        if node in self.errors:
            raise self.errors[node]
        return f"{node} {kind} {sha256[:2]}"

    def evidence(self, node: str) -> Any:
        if node in self.errors:
            raise self.errors[node]
        return self.exports[node]

    def refusal(self, node: str) -> VhtError | None:
        return self.halted.get(node)


def log(name: str, *kinds: str) -> dict[str, Any]:
    return {"entries": [{"kind": kind, "visit": f"v-{name}", "body": {"events": []}} for kind in kinds]}


def releasing(folder: Path, hospitals: Hospitals, minimum: int = 2) -> tuple["release.Release", RunState]:
    planned = planned_study(folder, permit={"minimum_nodes": minimum})
    directory, lines = RunDirectory(folder / "run"), list[str]()
    run: Any = SimpleNamespace(
        planned=planned, out=directory.path, say=lines.append, directory=directory, clock=lambda: datetime.now(UTC),
        keep_status=lambda _: None,
    )  # fmt: skip
    state = RunState(study_id="s", state="completed")
    state.nodes = {
        name: NodeState(flower_node=number, visit=f"v-{name}", rounds=["train-1"]) for number, name in enumerate(NAMES)
    }
    directory.write_state(state)
    visits: Any = hospitals
    return release.Release(run, visits, SigningKey.generate()), state


@pytest.mark.parametrize("loss", LOSSES)
def test_a_hospital_that_does_not_acknowledge_is_lost_and_the_others_release(loss: VhtError, tmp_path: Path) -> None:
    releaser, state = releasing(tmp_path, Hospitals(h3=loss))
    receipts = releaser._acknowledged(state, ARTEFACTS)
    assert receipts == {name: [f"{name} component ab", f"{name} cohort cd"] for name in ("h1", "h2")}
    kept = RunDirectory(tmp_path / "run").state()
    assert kept.taking_part() == ["h1", "h2"]
    assert (kept.nodes["h3"].lost, kept.nodes["h3"].code) == (loss.message, loss.code)


def test_why_a_hospital_was_lost_is_said_in_its_own_words(tmp_path: Path) -> None:
    hospitals = Hospitals(h3=LOSSES[0])
    hospitals.halted["h3"] = STOPPED
    releaser, state = releasing(tmp_path, hospitals)
    releaser._acknowledged(state, ARTEFACTS)
    assert state.nodes["h3"].lost == STOPPED.message


def test_fewer_than_must_be_release_nothing_and_each_reason_is_named(tmp_path: Path) -> None:
    releaser, state = releasing(tmp_path, Hospitals(h1=LOSSES[1], h3=LOSSES[0]))
    with pytest.raises(CohortError, match=r"the log was cut.*this visit is halted") as caught:
        releaser._acknowledged(state, ARTEFACTS)
    assert caught.value.code == "VHT-COHORT-NODES"


def test_a_revoked_permit_ends_the_release_however_many_are_left(tmp_path: Path) -> None:
    calls: list[Callable[[release.Release, RunState], Any]] = [
        lambda releaser, state: releaser._acknowledged(state, ARTEFACTS),
        lambda releaser, state: releaser._statement(state),
    ]
    for number, step in enumerate(calls):
        (folder := tmp_path / str(number)).mkdir()
        releaser, state = releasing(folder, Hospitals(h3=RevokedError("the permit is revoked")))
        with pytest.raises(RevokedError):
            step(releaser, state)


@pytest.mark.parametrize("loss", [*LOSSES, None])
def test_a_hospital_without_its_log_is_lost_and_counted_by_what_it_sent(
    loss: VhtError | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: dict[str, Any] = {}
    monkeypatch.setattr(release, "privacy_statement", lambda _, events, __: counted.update(events) or {})
    hospitals = Hospitals(**({"h3": loss} if loss else {}))
    hospitals.exports["h3"] = {"entries": "no log"}
    releaser, state = releasing(tmp_path, hospitals)
    releaser._statement(state)
    assert state.taking_part() == ["h1", "h2"]
    plan = releaser.run.planned.request.plan
    assert {name: list(events) for name, events in counted.items()} == {"h3": list(plan.events_of("train", 1))}


@pytest.mark.parametrize("spoil", ["unreachable", "unclosed"])
def test_a_hospital_whose_log_does_not_close_the_visit_is_lost_before_the_bundle_is_written(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[BundleParts] = []
    monkeypatch.setattr(release, "write_bundle", lambda _, parts, *__, **___: written.append(parts))
    hospitals = Hospitals(**({"h3": LOSSES[3]} if spoil == "unreachable" else {}))
    hospitals.exports["h3"] = log("h3", "release.acknowledged")
    releaser, state = releasing(tmp_path, hospitals)
    for name in ("study.jws", "status-start.jwt", "status-end.jwt"):
        (tmp_path / "run" / name).write_text("x")
    state.releases = {"component": ARTEFACTS["component"]}
    releaser.run.directory.write_state(state)
    releaser.write_evidence(state, {name: ["r"] for name in NAMES}, cohort=False)
    (parts,) = written
    assert json.loads(parts.run)["nodes"]["h3"]["lost"]
    assert set(parts.receipts) >= {"h1", "h2"}
