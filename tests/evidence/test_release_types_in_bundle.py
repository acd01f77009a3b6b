"""An auditor asks of every round under a permit whether what it gave may be released."""

from pathlib import Path

import pytest
from kit.hostile_table import Answered
from kit.rehearsed_runs import NODE, PLAN, code_of, finish, prepared

from vht_federate.domain.plan import RELEASE_TYPES, StudyPlan
from vht_federate.evidence.verify import verify_bundle
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.testing.rehearsal import REHEARSED_PLAN, Rehearsal

PERMIT = {"release_types": ["component"], "epsilon": 6.0}


@pytest.mark.hostile("release-audit")
@pytest.mark.parametrize(
    ("allowed", "missing"),
    [(["component"], "cohort, metrics"), (["component", "metrics"], "cohort"), (["cohort", "metrics"], "component")],
)
def test_a_bundle_of_a_study_beyond_what_the_permit_allows_is_refused(
    allowed: list[str], missing: str, tmp_path: Path, answered: Answered
) -> None:
    with Rehearsal(tmp_path, permit_fields={"release_types": allowed}) as study:
        study.play()
        assert code_of(study, tmp_path / "bundle", f"release type {missing} is not") == "VHT-VERIFY-STUDY"
    answered("VHT-VERIFY-STUDY")


def _another_visit(study: Rehearsal, job: str) -> None:
    """A second visit under the permit, of a study that is not in the bundle and has the whole plan; one round."""
    wide, log = REHEARSED_PLAN, study.logs[NODE]
    events = [event.model_dump(mode="json") for event in wide.events()]
    changes = {
        "visit.requested": {"plan": wide.model_dump(mode="json")},
        "budget.reserved": {"events": events, "epsilon_if_spent": epsilon_by_population(wide.events(), wide.delta)},
    }
    kept = ("visit.requested", "permit.checked", "visit.approved", "budget.reserved", "cohort.built", "enclave.started")
    for entry in list(log.entries()):
        if entry.visit == f"visit-{NODE}" and entry.kind in kept:
            body = {**entry.body, **changes.get(entry.kind, {})}
            log.append(entry.kind, body, permit_id=entry.permit_id, visit="visit-beside")
    begun = {"job": job, "round": 1, "dataset": f"urn:vht:{NODE}:ehr", "request_sha256": "ab" * 32, "status_serial": 7}
    begun["events"] = [event.model_dump(mode="json") for event in wide.events_of(job, 1)]
    log.append("round.begun", begun, permit_id=study.permit.permit_id, visit="visit-beside")
    study.status("end")


@pytest.mark.hostile("release-audit")
@pytest.mark.parametrize("job", ["evaluate", "marginals"])
def test_a_round_whose_output_may_not_be_released_is_named(job: str, tmp_path: Path, answered: Answered) -> None:
    with prepared(tmp_path, permit_fields=PERMIT) as study:
        _another_visit(finish(study), job)
        assert code_of(study, tmp_path / "bundle", f"ran {job}") == "VHT-VERIFY-RELEASE"
    answered("VHT-VERIFY-RELEASE")


@pytest.mark.hostile("release-audit", control=True)
def test_control_a_verifier_that_does_not_ask_lets_both_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StudyPlan, "release_types", lambda _: {"component"})
    monkeypatch.setitem(RELEASE_TYPES, "evaluate", "component")
    with prepared(tmp_path, permit_fields=PERMIT) as study:
        _another_visit(finish(study), "evaluate")
        assert verify_bundle(study.bundle(tmp_path / "bundle"), study.trust).checks


def test_a_round_whose_output_may_be_released_is_none(tmp_path: Path) -> None:
    assert PLAN.release_types() == {"component"}
    with prepared(tmp_path, permit_fields=PERMIT) as study:
        _another_visit(finish(study), "train")
        verify_bundle(study.bundle(tmp_path / "bundle"), study.trust)
