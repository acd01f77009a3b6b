"""From a study file to a signed request whose cost is what was asked for."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from strategies.plan import PlannedStudy, check_locally, plan_study, resolve_plan
from strategies.study_template import STUDY_TEMPLATE
from vht_federate.components.digest import component_digest
from vht_federate.components.registry import find_component
from vht_federate.domain.law import ActorKind, DataCategory, Purpose
from vht_federate.domain.permit import PERMIT_TYP, DataUser, Permit
from vht_federate.domain.plan import StudyPlan
from vht_federate.domain.study import STUDY_TYP, StudyFile, StudyRequest
from vht_federate.errors import BudgetError, CohortError, InputError, PermitError, VhtError
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.signing.keys import SigningKey

NOW = datetime(2030, 5, 1, tzinfo=UTC)
COMPONENT = find_component("cardio-risk")


def permit_of(user: SigningKey, **changes: Any) -> Permit:
    fields: dict[str, Any] = {
        "permit_id": "permit-1",
        "hdab": "HDAB",
        "application_ref": "a-1",
        "issued_at": NOW,
        "not_before": NOW,
        "expires_at": NOW + timedelta(days=30),
        "categories": (DataCategory.EHR,),
        "dataset_ids": ("urn:vht:h1:ehr", "urn:vht:h2:ehr"),
        "columns": COMPONENT.component.columns("cardiometabolic"),
        "purposes": (Purpose.RESEARCH_ALGORITHMS,),
        "purpose_text": "research",
        "controller": "Institute",
        "data_users": (DataUser(name="Institute", kind=ActorKind.ACADEMIC, kid=user.public.kid),),
        "component_digests": (COMPONENT.digest(),),
        "epsilon": 3.0,
        "delta": 1e-5,
        "minimum_nodes": 2,
        **changes,
    }
    return Permit.model_validate(fields)


def study_file(folder: Path, permit: dict[str, Any] | None = None, **sections: dict[str, Any]) -> StudyFile:
    user = SigningKey.create(folder / "user.key")
    token = SigningKey.generate().sign(permit_of(user, **(permit or {})).claims(), typ=PERMIT_TYP)
    (folder / "permit.jwt").write_text(token)
    content: dict[str, Any] = {
        "study": {
            "id": "study-1",
            "title": "A study",
            "permit": "permit.jwt",
            "user_key": "user.key",
            "purpose": "53.1.e.ii",
            "categories": ["51.1.a"],
        },
        "component": {"name": "cardio-risk", "profile": "cardiometabolic"},
        "privacy": {"epsilon": 3.0, "delta": 1e-5, "cohort_epsilon": 1.5, "evaluation_epsilon": 1.0},
        "training": {"rounds": 2, "local_steps": 4},
        "federation": {"coordinator": "coordinator", "ca": "ca.crt", "issuer": "https://127.0.0.1:1"},
    }
    for section, changes in sections.items():
        content[section] = {key: value for key, value in {**content[section], **changes}.items() if value is not None}
    content["nodes"] = [
        {"name": name, "url": "https://127.0.0.1:2", "dataset": f"urn:vht:{name}:ehr"} for name in ("h1", "h2")
    ]
    (folder / "study.toml").write_text(tomli_w.dumps(content))
    return StudyFile.read(folder / "study.toml")


def planned_study(folder: Path, permit: dict[str, Any] | None = None, **sections: dict[str, Any]) -> PlannedStudy:
    return plan_study(study_file(folder, permit, **sections), NOW)


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
