"""A privacy statement is computed again and compared whole, of whatever schema it says it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.hostile_table import Answered
from kit.rehearsed_runs import NAMES, NODE, PLAN, code_of, finish, prepared

from vht_federate.errors import VerificationError
from vht_federate.evidence import release_check
from vht_federate.evidence.statement_check import check_statement, possible_spends
from vht_federate.evidence.verify import verify_bundle
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.privacy.statement import privacy_statement
from vht_federate.testing import rehearsal as rehearsal_module
from vht_federate.testing.rehearsal import REHEARSED_PLAN, Rehearsal

Statement = dict[str, Any]
Spoil = Callable[[Statement], None]
EVENTS = PLAN.events()
HALF = (*PLAN.events_of("train", 1),)
ENGINES = {name: {"engine": "book-keeping", "why": ""} for name in NAMES}
ANONYMOUS = "This release is anonymous data."


def as_schema_1(statement: Statement) -> Statement:
    """The same as the software wrote it before a part was marked as the coordinator's own words."""
    own = statement.pop("coordinator_says")
    statement["schema_version"] = "1"
    statement["accountant"]["library"], statement["randomness"] = own["accountant_library"], own["randomness"]
    return statement


def written(schema: str, ran: dict[str, Any] | None = None) -> Statement:
    statement = privacy_statement(PLAN, ran if ran is not None else dict.fromkeys(NAMES, EVENTS), ENGINES)
    statement = json.loads(json.dumps(statement))
    return as_schema_1(statement) if schema == "1" else statement


def checked(
    folder: Path,
    statement: Statement,
    spends: dict[str, Any] | None = None,
    *,
    plan: Any = PLAN,
    kind: str = "component",
) -> dict[str, Any]:
    (folder / "release").mkdir(exist_ok=True)
    (folder / "release" / "privacy_statement.json").write_text(json.dumps(statement))
    possible = spends if spends is not None else {name: [EVENTS] for name in NAMES}
    return check_statement(folder, "release", kind, plan, ENGINES, possible, epsilon_by_population)


def refused(folder: Path, statement: Statement, **more: Any) -> str:
    with pytest.raises(VerificationError) as caught:
        checked(folder, statement, **more)
    assert caught.value.code == "VHT-VERIFY-RELEASE"
    assert caught.value.message.startswith("release/privacy_statement.json")
    return caught.value.message


@pytest.mark.parametrize("schema", ["1", "2"])
def test_a_true_statement_holds(schema: str, tmp_path: Path) -> None:
    own = checked(tmp_path, written(schema))
    assert own.keys() == ({"coordinator_says"} if schema == "2" else {"accountant.library", "randomness"})


def _put(value: Any, *path: str) -> Spoil:
    def spoil(statement: Statement) -> None:
        inner = statement
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value

    return spoil


def _drop(*path: str) -> Spoil:
    def spoil(statement: Statement) -> None:
        inner = statement
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]

    return spoil


ATTACKS: dict[str, Spoil] = {
    "unit": _put("record", "unit"),
    "unit in words": _put(f"patient. {ANONYMOUS}", "unit"),
    "neighbours": _put("replace-one-record", "neighbouring_relation", "name"),
    "neighbours in words": _put(ANONYMOUS, "neighbouring_relation", "text"),
    "populations": _put(ANONYMOUS, "populations"),
    "accountant": _put("zero-concentrated", "accountant", "name"),
    "method": _put("exact", "accountant", "method"),
    "trust model": _put("secure-aggregation", "trust_model", "name"),
    "trust model in words": _put("Nobody needs to be trusted.", "trust_model", "text"),
    "trust model and more": _put(True, "trust_model", "attested"),
    "limits gone": _put([], "limits"),
    "limits changed": _put([ANONYMOUS], "limits"),
    "public information": _put([], "public_information"),
    "framework": _put("ISO 27559", "framework"),
    "sampling": _put("shuffled batches", "mechanism", "sampling"),
    "sampling rate": _put(0.001, "mechanism", "sampling_rate"),
    "clipping norm": _put(0.5, "mechanism", "clipping_norm"),
    "noise": _put("discrete", "mechanism", "noise", "name"),
    "noise in words": _put("exact", "mechanism", "noise", "text"),
    "noise multiplier": _put(60.0, "mechanism", "noise", "sum_noise_multiplier"),
    "plan": _put([], "mechanism", "planned"),
    "delta": _put(1.05e-5, "delta"),
    "epsilon": _put(0.1, "epsilon"),
    "epsilon as truth": _put(True, "epsilon_by_population", "train"),
    "epsilon by population": _put(0.0, "epsilon_by_population", "train"),
    "nodes gone": _put({}, "nodes"),
    "a node gone": _drop("nodes", NODE),
    "a node of nobody": _put({"epsilon": {"train": 0.0, "test": 0.0}, "events": []}, "nodes", "hospital-9"),
    "a node's epsilon": _put({"train": 0.0, "test": 0.0}, "nodes", NODE, "epsilon"),
    "a node's events": _put([], "nodes", NODE, "events"),
    "a node's engine": _put({"engine": "torch.func", "why": ""}, "nodes", NODE, "gradients"),
    "a node and more": _put(ANONYMOUS, "nodes", NODE, "note"),
    "a share": _put({"kind": "component", "epsilon": 0.1, "delta": 1e-5, "events": []}, "release"),
    "more": _put(ANONYMOUS, "legal_status"),
    "less": _drop("limits"),
    "schema 3": _put("3", "schema_version"),
    "schema 0": _put("0", "schema_version"),
    "no schema": _drop("schema_version"),
}


@pytest.mark.hostile("statement")
@pytest.mark.parametrize("schema", ["1", "2"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_false_statement_is_refused_whatever_its_schema(
    attack: str, schema: str, tmp_path: Path, answered: Answered
) -> None:
    statement = written(schema)
    ATTACKS[attack](statement)
    refused(tmp_path, statement)
    answered("VHT-VERIFY-RELEASE")


@pytest.mark.hostile("statement", control=True)
def test_the_three_numbers_that_were_compared_before_are_not_enough(tmp_path: Path) -> None:
    statement = written("2")
    for attack in ("unit in words", "trust model", "limits changed", "populations"):
        ATTACKS[attack](statement)
    true = written("2")
    assert [statement[name] for name in ("epsilon", "delta", "nodes")] == [
        true[name] for name in ("epsilon", "delta", "nodes")
    ]
    refused(tmp_path, statement)


def test_what_the_coordinator_alone_says_is_marked_and_of_two_members(tmp_path: Path) -> None:
    statement = written("2")
    statement["coordinator_says"]["randomness"] = "dice"
    assert checked(tmp_path, statement) == {"coordinator_says": statement["coordinator_says"]}
    for spoil in (
        _put(ANONYMOUS, "coordinator_says", "legal_status"),
        _put(ANONYMOUS, "coordinator_says", "accountant_library"),
        _put("x" * 201, "coordinator_says", "randomness"),
        _drop("coordinator_says", "randomness"),
        _drop("coordinator_says"),
    ):
        statement = written("2")
        spoil(statement)
        refused(tmp_path, statement)


def test_in_schema_1_nothing_is_marked_so_nothing_is_free(tmp_path: Path) -> None:
    for spoil in (
        _put(ANONYMOUS, "randomness"),
        _put(f"dp-accounting 0.4. {ANONYMOUS}", "accountant", "library"),
        _put({"randomness": ANONYMOUS, "accountant_library": "dp-accounting 1"}, "coordinator_says"),
        _drop("randomness"),
        _drop("accountant", "library"),
    ):
        statement = written("1")
        spoil(statement)
        refused(tmp_path, statement)


def test_a_statement_of_schema_2_called_schema_1_is_none_and_the_other_way_round(tmp_path: Path) -> None:
    for schema, other in (("1", "2"), ("2", "1")):
        statement = written(schema)
        statement["schema_version"] = other
        refused(tmp_path, statement)


def test_of_a_lost_node_a_statement_counts_what_was_used_and_at_most_what_was_begun(tmp_path: Path) -> None:
    stayed, lost = NAMES
    spends = {stayed: [EVENTS], lost: [HALF, EVENTS]}
    for events in (HALF, EVENTS):
        checked(tmp_path, written("2", {stayed: EVENTS, lost: events}), spends)
    for ran in ({stayed: EVENTS}, {stayed: EVENTS, lost: (*EVENTS, *HALF)}, {stayed: EVENTS, lost: ()}):
        refused(tmp_path, written("2", ran), spends=spends)
    checked(tmp_path, written("2", {stayed: EVENTS}), {stayed: [EVENTS], lost: [(), HALF]})


def test_a_cohorts_share_is_what_the_plans_tables_cost(tmp_path: Path) -> None:
    plan = REHEARSED_PLAN
    statement = privacy_statement(plan, dict.fromkeys(NAMES, plan.events()), ENGINES)
    spends = {name: [plan.events()] for name in NAMES}
    message = refused(tmp_path, statement, spends=spends, plan=plan, kind="cohort")
    assert "lacks release" in message


# --- in a bundle ----------------------------------------------------------------------------------------------------


@pytest.mark.hostile("statement-bundle")
@pytest.mark.parametrize("schema", ["1", "2"])
@pytest.mark.parametrize("attack", ["trust model", "nodes gone", "limits changed"])
def test_a_bundle_whose_release_states_something_false_is_refused(
    attack: str, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: Answered
) -> None:
    """The coordinator writes and seals it, and every node acknowledges it: nobody but the verifier looks."""

    def false(*args: Any) -> Statement:
        statement = privacy_statement(*args)
        statement = as_schema_1(statement) if schema == "1" else statement
        ATTACKS[attack](statement)
        return statement

    monkeypatch.setattr(rehearsal_module, "privacy_statement", false)
    with prepared(tmp_path) as study:
        finish(study)
        assert code_of(study, tmp_path / "bundle", "privacy_statement.json") == "VHT-VERIFY-RELEASE"
    answered("VHT-VERIFY-RELEASE")


@pytest.mark.hostile("statement-bundle", control=True)
def test_control_a_verifier_that_compares_nothing_lets_a_false_statement_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def false(*args: Any) -> Statement:
        statement = privacy_statement(*args)
        for attack in ("trust model", "limits changed"):
            ATTACKS[attack](statement)
        return statement

    monkeypatch.setattr(rehearsal_module, "privacy_statement", false)
    monkeypatch.setattr(release_check, "check_statement", lambda *_, **__: {})
    with prepared(tmp_path) as study:
        finish(study)
        assert verify_bundle(study.bundle(tmp_path / "bundle"), study.trust).checks


def test_a_bundle_with_a_statement_of_schema_1_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal_module, "privacy_statement", lambda *args: as_schema_1(privacy_statement(*args)))
    with prepared(tmp_path) as study:
        finish(study)
        verified = verify_bundle(study.bundle(tmp_path / "bundle"), study.trust)
    assert any("computed again" in check.what for check in verified.checks)


def test_what_a_lost_node_may_have_spent_is_read_from_its_log_and_the_run(tmp_path: Path) -> None:
    names = ("hospital-1", "hospital-2", "hospital-3")
    with Rehearsal(tmp_path, names=names, plan=PLAN) as study:
        study.play(lost={"hospital-3": ("train", 2)})
        verified = verify_bundle(study.bundle(tmp_path / "bundle"), study.trust)
    spends = possible_spends(verified.run, PLAN, study.request.study_id, {}, {})
    assert spends["hospital-3"] == [HALF]
