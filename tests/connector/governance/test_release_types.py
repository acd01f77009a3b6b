"""A permit says what may be made of the data: a job whose outputs become something else never runs."""

from typing import Any

import pytest
from kit.hospital import COMPONENT, PLAN, PROFILE, Hospital, approved, ask
from kit.hostile_table import Answered

from connector.governance import round_gate
from connector.node import Node
from connector.store.models import VisitRow
from vht_federate.domain.plan import RELEASE_TYPES, CohortPlan, StudyPlan
from vht_federate.errors import PermitError
from vht_federate.packaging.codebook import codebook_for
from vht_federate.permits.check import check_job

DIGEST = "ab" * 32
TRAINING = PLAN.model_copy(update={"evaluation": None})
MARGINALS = CohortPlan(one_way_noise_multiplier=14.0, sketch_noise_multiplier=14.0, two_way_noise_multiplier=14.0)
EVERYTHING = PLAN.model_copy(update={"cohort": MARGINALS})


def _refused(node: Node, hospital: Hospital, allowed: tuple[str, ...], plan: StudyPlan) -> PermitError:
    book = codebook_for(COMPONENT.component, PROFILE) if plan.cohort else None
    with pytest.raises(PermitError) as caught:
        ask(node, hospital, hospital.permit(release_types=allowed), hospital.study(plan=plan, codebook=book))
    return caught.value


def test_every_job_of_a_plan_has_its_release_type() -> None:
    assert {job for job, _ in EVERYTHING.calls()} == RELEASE_TYPES.keys()
    assert EVERYTHING.release_types() == {"component", "metrics", "cohort"}
    assert TRAINING.release_types() == {"component"}


@pytest.mark.hostile("release-request")
@pytest.mark.parametrize(
    ("allowed", "plan", "missing"),
    [
        (("component",), PLAN, "metrics"),
        (("component",), EVERYTHING, "cohort, metrics"),
        (("component", "metrics"), EVERYTHING, "cohort"),
        (("cohort", "metrics"), TRAINING, "component"),
    ],
)
def test_a_study_that_makes_more_than_the_permit_allows_is_refused_at_its_request(
    allowed: tuple[str, ...], plan: StudyPlan, missing: str, stocked: Hospital, answered: Answered
) -> None:
    with stocked.open() as node:
        error = _refused(node, stocked, allowed, plan)
        assert node.visits.all() == []
    assert (error.code, missing in error.message) == ("VHT-PERMIT-RELEASE", True)
    answered(error.code)
    assert stocked.log()[-1]["body"]["code"] == "VHT-PERMIT-RELEASE"


def test_a_study_within_what_the_permit_allows_is_taken_in(stocked: Hospital) -> None:
    with stocked.open() as node:
        permit = stocked.permit(release_types=("component",))
        assert ask(node, stocked, permit, stocked.study(plan=TRAINING)).state == "requested"


@pytest.mark.hostile("release-round")
def test_a_visit_let_in_without_that_question_is_refused_round_by_round(stocked: Hospital, answered: Answered) -> None:
    """As a visit would stand that an earlier version let in: its permit allows a component and no figures."""
    with stocked.open() as node:
        visit = ask(node, stocked)
        assert approved(node, visit.id) == "ready"
        with node.database.write() as session:
            row: Any = session.get(VisitRow, visit.id)
            row.permit = stocked.permit(release_types=("component",))
        node.gate.begin(visit.id, "train", 1, DIGEST)
        node.gate.release(visit.id, "train", 1, DIGEST, 17)
        with pytest.raises(PermitError) as caught:
            node.gate.begin(visit.id, "evaluate", 1, DIGEST)
        assert caught.value.code == "VHT-PERMIT-RELEASE"
        drawn = [entry["body"]["job"] for entry in stocked.log() if entry["kind"] == "round.begun"]
        refused = stocked.log()[-1]
    assert drawn == ["train"]
    answered(caught.value.code)
    assert (refused["kind"], refused["body"]["code"]) == ("round.refused", "VHT-PERMIT-RELEASE")


@pytest.mark.hostile("release-round")
def test_an_output_does_not_leave_under_a_permit_that_does_not_allow_its_release(
    stocked: Hospital, answered: Answered
) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        assert approved(node, visit.id) == "ready"
        node.gate.begin(visit.id, "evaluate", 1, DIGEST)
        with node.database.write() as session:
            row: Any = session.get(VisitRow, visit.id)
            row.permit = stocked.permit(release_types=("component",))
        with pytest.raises(PermitError) as caught:
            node.gate.release(visit.id, "evaluate", 1, DIGEST, 17)
    assert caught.value.code == "VHT-PERMIT-RELEASE"
    answered(caught.value.code)
    assert "round.released" not in stocked.kinds()


@pytest.mark.hostile("release-request", control=True)
@pytest.mark.hostile("release-round", control=True)
def test_control_without_those_questions_figures_leave_under_a_permit_for_a_component(
    stocked: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StudyPlan, "release_types", lambda _: {"component"})
    monkeypatch.setattr(round_gate, "check_job", lambda *_: None)
    with stocked.open() as node:
        visit = ask(node, stocked, stocked.permit(release_types=("component",)))
        assert approved(node, visit.id) == "ready"
        node.gate.begin(visit.id, "evaluate", 1, DIGEST)
        node.gate.release(visit.id, "evaluate", 1, DIGEST, 17)
    assert "round.released" in stocked.kinds()


def test_a_job_without_a_release_type_is_refused(stocked: Hospital) -> None:
    with stocked.open(start=False) as node:
        permit = node.visits.admission.require_permit(stocked.permit(), stocked_categories(node))
    check_job(permit, "train")
    with pytest.raises(PermitError, match="no output of this job"):
        check_job(permit, "copy")


def stocked_categories(node: Node) -> Any:
    return node.settings.dataset.categories
