"""A study file with its permit, and what is planned from it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import tomli_w

from strategies.plan import PlannedStudy, plan_study
from vht_federate.components.registry import find_component
from vht_federate.domain.law import ActorKind, DataCategory, Purpose
from vht_federate.domain.permit import PERMIT_TYP, DataUser, Permit
from vht_federate.domain.study import StudyFile
from vht_federate.signing.keys import SigningKey

__all__ = ["COMPONENT", "NOW", "permit_of", "planned_study", "study_file"]


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
    SigningKey.create(folder / "coordinator" / "coordinator.key")
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
