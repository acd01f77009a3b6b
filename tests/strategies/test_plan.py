"""From a study file to a signed request whose cost is what was asked for."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kit.commands import exit_and_envelope
from kit.planned_studies import COMPONENT, NOW, planned_study, study_file
from typer.testing import CliRunner

from strategies.cli import study as study_commands
from strategies.plan import check_locally, plan_study, resolve_plan
from strategies.study_template import STUDY_TEMPLATE
from vht_federate.components.digest import component_digest
from vht_federate.domain.law import ActorKind, DataCategory, Purpose
from vht_federate.domain.permit import DataUser
from vht_federate.domain.plan import StudyPlan
from vht_federate.domain.study import STUDY_TYP, StudyFile, StudyRequest
from vht_federate.errors import BudgetError, CohortError, InputError, PermitError, VhtError
from vht_federate.privacy.accounting import epsilon_by_population


def resolve(file: StudyFile) -> StudyPlan:
    return resolve_plan(file.privacy, file.training)


def test_the_plan_costs_what_was_asked_and_not_more(tmp_path: Path) -> None:
    planned = planned_study(tmp_path)
    spent = epsilon_by_population(planned.request.plan.events(), 1e-5)
    assert spent == planned.epsilon
    assert 2.9 < spent["train"] <= 3.0
    assert 0.95 < spent["test"] <= 1.0
    marginals = [event for event in planned.request.plan.events() if event.label.startswith("marginals")]
    assert len(marginals) == 3
    assert 1.4 < epsilon_by_population(marginals, 1e-5)["train"] <= 1.5


def test_without_cohort_and_evaluation_training_gets_all_of_it(tmp_path: Path) -> None:
    privacy = {"cohort_epsilon": None, "evaluation_epsilon": None}
    alone = resolve(study_file(tmp_path, privacy=privacy))
    shared = resolve(study_file(tmp_path))
    assert alone.cohort is None
    assert alone.evaluation is None
    assert alone.training.noise_multiplier < shared.training.noise_multiplier
    assert epsilon_by_population(alone.events(), 1e-5)["test"] == 0.0


def test_the_request_is_signed_by_the_user_and_names_the_component_by_digest(tmp_path: Path) -> None:
    planned = planned_study(tmp_path)
    request = StudyRequest.from_claims(planned.user_key.public.verify(planned.token, typ=STUDY_TYP))
    assert request == planned.request
    assert request.component.digest == component_digest(COMPONENT.folder)
    assert request.columns == COMPONENT.component.columns("cardiometabolic")
    assert request.codebook is not None
    check_locally(planned, NOW)


@pytest.mark.parametrize(
    ("permit", "code"),
    [
        ({"epsilon": 2.0}, "VHT-BUDGET-PERMIT"),
        ({"delta": 1e-6}, "VHT-BUDGET-PERMIT"),
        ({"component_digests": ("0" * 64,)}, "VHT-PERMIT-COMPONENT"),
        ({"columns": ("age",)}, "VHT-PERMIT-COLUMN"),
        ({"dataset_ids": ("urn:vht:h1:ehr",)}, "VHT-PERMIT-DATASET"),
        ({"purposes": (Purpose.EDUCATION,)}, "VHT-PERMIT-PURPOSE"),
        ({"categories": (DataCategory.GENOMIC,)}, "VHT-PERMIT-CATEGORY"),
        ({"data_users": (DataUser(name="x", kind=ActorKind.PRIVATE, kid="other"),)}, "VHT-PERMIT-USER"),
        ({"minimum_nodes": 3}, "VHT-COHORT-NODES"),
    ],
)
def test_what_every_node_would_refuse_is_refused_here_with_the_same_code(
    permit: dict[str, Any], code: str, tmp_path: Path
) -> None:
    planned = planned_study(tmp_path, permit)
    with pytest.raises((BudgetError, PermitError, CohortError)) as caught:
        check_locally(planned, NOW)
    assert caught.value.code == code


def test_an_expired_permit_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    planned = planned_study(tmp_path)
    with pytest.raises(PermitError) as caught:
        check_locally(planned, NOW + timedelta(days=31))
    assert caught.value.code == "VHT-PERMIT-EXPIRED"


@pytest.mark.parametrize("privacy", [{"cohort_epsilon": 3.1}, {"evaluation_epsilon": 3.1}])
def test_a_part_that_costs_more_than_the_whole_is_infeasible(privacy: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BudgetError) as caught:
        resolve(study_file(tmp_path, privacy=privacy))
    assert caught.value.code == "VHT-BUDGET-INFEASIBLE"


def test_the_minimum_is_never_below_the_permits(tmp_path: Path) -> None:
    assert planned_study(tmp_path, federation={"minimum_nodes": 1}).minimum_nodes == 2


def test_a_missing_permit_or_key_is_an_input_error(tmp_path: Path) -> None:
    file = study_file(tmp_path)
    (tmp_path / "permit.jwt").unlink()
    with pytest.raises(InputError):
        plan_study(file, NOW)
    (tmp_path / "permit.jwt").write_text("not a token")
    with pytest.raises(VhtError):
        plan_study(file, NOW)


def test_the_template_is_a_study_file(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY_TEMPLATE)
    assert StudyFile.read(tmp_path / "study.toml").study.id == "my-study-1"


@pytest.mark.parametrize(("ceiling", "exit_code"), [(3.0, 0), (2.9, 3)])
def test_the_command_fails_over_the_permits_ceiling_after_it_said_what_it_would_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ceiling: float, exit_code: int
) -> None:
    monkeypatch.setattr("strategies.cli._now", lambda: NOW)
    study_file(tmp_path, {"epsilon": ceiling})
    code, envelope = exit_and_envelope("study", "plan", tmp_path / "study.toml")
    assert (code, envelope["ok"]) == (exit_code, exit_code == 0)
    if exit_code:
        assert envelope["error"]["code"] == "VHT-BUDGET-PERMIT"
    shown = CliRunner().invoke(study_commands, ["plan", str(tmp_path / "study.toml")])
    assert shown.exit_code == exit_code
    assert "What a patient pays" in shown.stdout
    assert ("VHT-BUDGET-PERMIT" in shown.stderr) is (exit_code != 0)
