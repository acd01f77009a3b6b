"""Questions of feasibility: signed by a user, and asked of a node that answers without noise and without waiting."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from connector.node import Node
from kit.hospital import DATASET, Hospital
from vht_federate.domain.feasibility import FEASIBILITY_TYP, FeasibilityQuestion
from vht_federate.domain.law import DataCategory, Purpose
from vht_federate.signing.keys import SigningKey
from vht_federate.testing.noise import SeededNoise

__all__ = ["HIGH", "INFARCT", "SNOMED", "ask", "asked_of", "question", "silence", "view"]


def view(resource: str = "Patient", where: str | None = None, **more: Any) -> dict[str, Any]:
    path = "getResourceKey()" if resource == "Patient" else "subject.getReferenceKey(Patient)"
    definition = {"resource": resource, "select": [{"column": [{"name": "patient", "path": path}]}], **more}
    return {**definition, "where": [{"path": where}]} if where else definition


SNOMED = "http://snomed.info/sct"


HIGH = "value.ofType(Quantity).value > 120"


INFARCT = "code.coding.where(system = 'http://snomed.info/sct' and code = '22298006').exists()"


def question(hospital: Hospital, *, key: SigningKey | None = None, **changes: Any) -> str:
    user = key or hospital.user
    fields: dict[str, Any] = {
        "title": "How many men?",
        "created_at": datetime.now(UTC),
        "permit_id": "permit-1",
        "user_kid": user.public.kid,
        "purpose": Purpose.RESEARCH_ALGORITHMS,
        "categories": (DataCategory.EHR,),
        "dataset_ids": (DATASET,),
        "view": view(),
        "epsilon": 0.3,
        **changes,
    }
    return user.sign(FeasibilityQuestion.model_validate(fields).claims(), typ=FEASIBILITY_TYP)


def silence() -> SeededNoise:
    """Noise of nothing: what is left is the count."""
    return SeededNoise(0, scale=0.0)


@contextmanager
def asked_of(hospital: Hospital, *, silent: bool = True) -> Iterator[Node]:
    with hospital.open() as node:
        node.feasibility.pause = lambda _: None
        node.feasibility.settings = node.settings.model_copy(update={"feasibility_seconds": 60.0})
        if silent:
            node.feasibility.noise = silence
        yield node


def ask(node: Node, hospital: Hospital, permit: str | None = None, **changes: Any) -> dict[str, Any]:
    user = changes.get("key") or hospital.user
    return node.feasibility.answer(permit or hospital.permit(), question(hospital, **changes), user.public.jwk())
