"""A bundle whose signatures are all genuine and whose story still breaks a rule: each is found at its entry."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kit.rehearsed_runs import NAMES, NODE, PLAN, code_of, finish, prepared, rehearsal

from vht_federate.errors import VerificationError
from vht_federate.evidence.verify import verify_bundle
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.testing.rehearsal import Rehearsal

DAY = "2026-06-01T00:00:00+00:00"


Step = Callable[[Rehearsal], Any]


def _log(kind: str, **body: Any) -> Step:
    return lambda study: study.log(NODE, kind, body)


def _twice(study: Rehearsal) -> None:
    study.begin(NODE, "train", 1)


def _unbegun(study: Rehearsal) -> None:
    study.release_round(NODE, "train", 2)


def _after_revocation(study: Rehearsal) -> None:
    study.log(NODE, "permit.revoked-seen", {"status_serial": 8})
    study.begin(NODE, "train", 2)


def _released_after_revocation(study: Rehearsal) -> None:
    study.begin(NODE, "train", 2)
    study.log(NODE, "permit.revoked-seen", {"status_serial": 8})
    study.release_round(NODE, "train", 2)


def _after_the_end(study: Rehearsal) -> None:
    study.close([NODE])
    study.begin(NODE, "train", 2)


def _other_events(study: Rehearsal) -> None:
    entry = study.begin(NODE, "train", 2).body
    event = {**entry["events"][0], "noise_multiplier": 60.0}
    study.log(NODE, "round.begun", {**entry, "job": "train", "round": 3, "events": [event]})


def _unplanned(study: Rehearsal) -> None:
    entry = study.begin(NODE, "train", 2).body
    study.log(NODE, "round.begun", {**entry, "round": 3})


def _wrong_total(study: Rehearsal) -> None:
    study.begin(NODE, "train", 2)
    study.log(NODE, "round.released", {**_released(PLAN.delta), "epsilon": {"train": 0.1, "test": 0.0}})


def _released(delta: float) -> dict[str, Any]:
    body = {"job": "train", "round": 2, "output_sha256": "ab" * 32, "status_serial": 7, "delta": delta}
    return body | {"epsilon": epsilon_by_population(PLAN.events(), PLAN.delta)}


def _other_delta(study: Rehearsal) -> None:
    study.begin(NODE, "train", 2)
    study.log(NODE, "round.released", _released(1e-3))


def _other_dataset(study: Rehearsal) -> None:
    entry = study.begin(NODE, "train", 2).body
    study.log(NODE, "round.begun", {**entry, "round": 3, "dataset": "urn:vht:elsewhere:ehr"})


def _older_status(study: Rehearsal) -> None:
    study.begin(NODE, "train", 2, status_serial=6)


@pytest.mark.parametrize(
    ("step", "code", "words"),
    [
        (_twice, "ORDER", "draws train 1 twice"),
        (_unbegun, "ORDER", "no round.begun"),
        (_after_revocation, "ORDER", "after the permit was seen revoked"),
        (_released_after_revocation, "ORDER", "after the permit was seen revoked"),
        (_after_the_end, "ORDER", "after the visit's end"),
        (_log("visit.requested", study_id="x"), "ORDER", "stands twice"),
        (_log("visit.approved", operator="o", digest="ab"), "ORDER", "comes too late"),
        (_log("visit.rejected", reason="hush"), "ORDER", "hides what was spent"),
        (_log("round.begun", job="train"), "ORDER", "lacks or garbles"),
        (_log("coffee.made"), "ORDER", "unknown kind"),
        (_log("enclave.started", component_digest="ab" * 32), "ORDER", "runs another component"),
        (_log("cohort.built", columns=[], minimum_cohort_met=False, opt_outs_as_of=DAY), "ORDER", "fewer patients"),
        (_log("cohort.built", columns=[], minimum_cohort_met=True, opt_outs_as_of=DAY), "ORDER", "comes too late"),
        (_other_dataset, "ORDER", "another dataset than the one reserved"),
        (_other_delta, "LEDGER", "at another delta"),
        (_other_events, "LEDGER", "draws other events"),
        (_unplanned, "LEDGER", "draws other events"),
        (_wrong_total, "LEDGER", "states another epsilon"),
        (_older_status, "STATUS", "older status list"),
    ],
)
def test_an_entry_that_breaks_the_order_is_named(step: Step, code: str, words: str, tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        step(study)
        assert code_of(study, tmp_path / "bundle", words) == f"VHT-VERIFY-{code}"
        assert code_of(study, tmp_path / "again", f"nodes/{NODE}.json entry ").startswith("VHT-VERIFY")


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("round.begun", {}, "before its visit was requested"),
        ("visit.closed", {}, "before its visit was requested"),
    ],
)
def test_a_visit_begins_with_its_request(kind: str, body: dict[str, Any], words: str, tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        study.logs[NODE].append(kind, body, permit_id=study.permit.permit_id, visit="visit-ghost")
        assert code_of(study, tmp_path / "bundle", words) == "VHT-VERIFY-ORDER"


def test_an_entry_of_this_permit_without_a_visit_is_refused_unless_it_refuses(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        study.logs[NODE].append("permit.checked", {"outcome": "refused"}, permit_id=study.permit.permit_id)
        verify_bundle(finish(study).bundle(tmp_path / "good"), study.trust)
        study.logs[NODE].append("permit.checked", {"outcome": "accepted"}, permit_id=study.permit.permit_id)
        assert code_of(study, tmp_path / "bundle", "belongs to no visit") == "VHT-VERIFY-ORDER"


def test_a_final_account_that_forgets_a_round_is_named(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        body = {"reason": "ended", "state": "closed", "delta": PLAN.delta, "spent": []}
        body |= {"epsilon": {"train": 0.0, "test": 0.0}}
        study.log(NODE, "visit.closed", body)
        assert code_of(study, tmp_path / "bundle", "accounts for other events") == "VHT-VERIFY-LEDGER"


def test_two_visits_together_must_stay_below_the_permits_ceiling(tmp_path: Path) -> None:
    visit_epsilon = epsilon_by_population(PLAN.events(), PLAN.delta)["train"]
    with prepared(tmp_path, permit_fields={"epsilon": visit_epsilon * 1.2}) as study:
        finish(study)
        verify_bundle(study.bundle(tmp_path / "good"), study.trust)
        log = study.logs[NODE]
        for entry in list(log.entries()):
            if entry.visit == f"visit-{NODE}" and entry.kind != "release.acknowledged":
                log.append(entry.kind, entry.body, permit_id=entry.permit_id, visit="visit-again")
        assert code_of(study, tmp_path / "bundle", "the permit's ceiling") == "VHT-VERIFY-LEDGER"


def test_a_plan_above_the_permits_ceiling_is_refused_before_any_log(tmp_path: Path) -> None:
    with prepared(tmp_path, permit_fields={"epsilon": 0.1}) as study:
        assert code_of(study, tmp_path / "bundle", "VHT-BUDGET-PERMIT") == "VHT-VERIFY-STUDY"


def test_a_round_after_the_permits_end_is_named(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        study.clock.advance(timedelta(days=31).total_seconds())
        finish(study)
        assert code_of(study, tmp_path / "bundle", "has expired") == "VHT-VERIFY-STATUS"


def test_a_run_that_ends_at_the_revocation_holds_and_says_so(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        study.revoked_at = study.clock.now + timedelta(seconds=1)
        study.clock.advance(2)
        for name in NAMES:
            study.log(name, "permit.revoked-seen", {"code": "VHT-PERMIT-REVOKED"})
            study.log(name, "round.refused", {"job": "train", "round": 2, "code": "VHT-PERMIT-REVOKED"})
        study.close()
        study.status("end")
        study.run["state"] = "revoked"
        verification = verify_bundle(study.bundle(tmp_path / "bundle"), study.trust)
    assert verification.run.state == "revoked"
    assert verification.releases == {}
    assert any("revoked" in line.what for line in verification.trace)
    assert verification.epsilon[NODE]["train"] > 0


def test_a_round_on_a_list_that_revokes_is_named(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        study.revoked_at = study.clock.now
        study.status("end")
        study.begin(NODE, "train", 2, status_serial=8)
        assert code_of(study, tmp_path / "bundle", "which revokes the permit") == "VHT-VERIFY-STATUS"


def test_a_round_long_after_the_revocation_is_named_whatever_list_it_claims(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        study.revoked_at = study.clock.now
        study.status("end")
        study.clock.advance(61)
        study.begin(NODE, "train", 2)
        assert code_of(study, tmp_path / "bundle", "after the permit was revoked") == "VHT-VERIFY-STATUS"


def test_a_release_from_a_revoked_run_is_refused(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        finish(study)
        study.run["state"] = "revoked"
        assert code_of(study, tmp_path / "bundle", "ended as revoked") == "VHT-VERIFY-RELEASE"


def test_a_run_that_lost_a_node_holds_with_a_note(tmp_path: Path) -> None:
    names = ("hospital-1", "hospital-2", "hospital-3")
    with Rehearsal(tmp_path, names=names, plan=PLAN) as study:
        study.play(lost={"hospital-3": ("train", 2)})
        with_log = verify_bundle(study.bundle(tmp_path / "with"), study.trust)
        without = verify_bundle(study.bundle(tmp_path / "without", study.parts(without=["hospital-3"])), study.trust)
    assert with_log.run.present() == ["hospital-1", "hospital-2"]
    assert [note.split(":")[0] for note in with_log.notes] == ["hospital-3"]
    assert "without its log" in without.notes[0]
    assert without.epsilon["hospital-3"]["train"] > with_log.epsilon["hospital-3"]["train"] > 0


def test_a_node_that_the_coordinator_calls_lost_without_its_log_is_never_free(tmp_path: Path) -> None:
    names = ("hospital-1", "hospital-2", "hospital-3")
    with Rehearsal(tmp_path, names=names, plan=PLAN) as study:
        study.play()
        study.run["nodes"]["hospital-3"]["lost"] = "it did not answer"
        del study.receipts["hospital-3"]
        del study.run["rounds"][1]["outputs"]["hospital-3"]
        parts = study.parts(without=["hospital-3"])
        with pytest.raises(VerificationError, match="other events of hospital-3"):
            verify_bundle(study.bundle(tmp_path / "bundle", parts), study.trust)
    with Rehearsal(tmp_path / "lost", names=names, plan=PLAN) as study:
        study.play(lost={"hospital-3": ("train", 1)})
        parts = study.parts(without=["hospital-3"])
        verification = verify_bundle(study.bundle(tmp_path / "again", parts), study.trust)
    assert verification.epsilon["hospital-3"] == verification.epsilon["hospital-1"]
    assert "by the coordinator's account it gave 0 outputs" in verification.notes[0]


def test_a_lost_node_that_names_another_visit_pays_what_its_log_says(tmp_path: Path) -> None:
    names = ("hospital-1", "hospital-2", "hospital-3")
    with Rehearsal(tmp_path, names=names, plan=PLAN) as study:
        study.play()
        study.run["nodes"]["hospital-3"] = {"visit": "visit-ghost", "lost": "it did not answer"}
        verification = verify_bundle(study.bundle(tmp_path / "bundle"), study.trust)
    assert verification.epsilon["hospital-3"] == verification.epsilon["hospital-1"]


def _without(kind: str, *names: str) -> Callable[[str, dict[str, Any]], dict[str, Any] | None]:
    """Leave an entry out, or fields of it."""

    def change(at: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if at != kind:
            return body
        return {name: value for name, value in body.items() if name not in names} if names else None

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("cohort.built"), "enclave.started comes before its cohort was built"),
        (_without("cohort.built", "opt_outs_as_of"), "cohort.built lacks or garbles: opt_outs_as_of"),
        (_without("permit.checked", "status_serial"), "permit.checked lacks or garbles: status_serial"),
        (_without("permit.checked", "permit_id"), "permit.checked lacks or garbles: permit_id"),
        (_without("budget.reserved", "dataset"), "budget.reserved lacks or garbles: dataset"),
        (_without("round.begun", "dataset"), "round.begun lacks or garbles: dataset"),
        (_without("round.released", "status_serial", "delta"), "round.released lacks or garbles: delta, status_serial"),
        (_without("visit.closed", "delta"), "visit.closed lacks or garbles: delta"),
    ],
)
def test_what_a_node_always_writes_must_be_there(
    change: Callable[[str, dict[str, Any]], dict[str, Any] | None], words: str, tmp_path: Path
) -> None:
    with rehearsal(tmp_path) as study:
        logged = study.log

        def log(name: str, kind: str, body: dict[str, Any]) -> Any:
            changed = change(kind, body)
            return None if changed is None else logged(name, kind, changed)

        study.log = log  # type: ignore[method-assign]
        study.play()
        assert code_of(study, tmp_path / "bundle", words) == "VHT-VERIFY-ORDER"


def test_a_status_list_that_the_nodes_relied_on_cannot_be_left_out(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        for name in NAMES:
            study.begin(name, "train", 2, status_serial=8)
        study.status("end")
        assert code_of(study, tmp_path / "bundle", "relied on 8") == "VHT-VERIFY-STATUS"


def test_a_status_list_from_before_the_last_round_does_not_do(tmp_path: Path) -> None:
    with rehearsal(tmp_path) as study:
        study.play()
        verify_bundle(study.bundle(tmp_path / "good"), study.trust)
        del study.statuses["end"]
        assert code_of(study, tmp_path / "bundle", "status/start.jwt") == "VHT-VERIFY-STATUS"
