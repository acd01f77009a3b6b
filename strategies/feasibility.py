"""Ask hospitals how many of their patients meet a cohort definition, before a study is planned."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from strategies.known_heads import KnownHeads
from vht_federate.client import Client, ask_each
from vht_federate.domain.feasibility import FEASIBILITY_TYP, FeasibilityQuestion
from vht_federate.domain.study import NodeRef, StudyFile
from vht_federate.errors import InputError, VhtError, WireError
from vht_federate.signing.keys import SigningKey, unverified_claims

__all__ = ["Answers", "ask_hospitals"]

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Answers:
    """What each hospital told, and the error of each that told nothing."""

    by_node: dict[str, dict[str, Any]]
    refused: dict[str, VhtError]

    def to_dict(self) -> dict[str, Any]:
        """``total`` is of the hospitals that told a number, with the standard deviation of its noise."""
        counted = [answer for answer in self.by_node.values() if answer["count"] is not None]
        return {
            "nodes": self.by_node,
            "refused": {name: error.envelope() for name, error in self.refused.items()},
            "total": sum(answer["count"] for answer in counted) if counted else None,
            "standard_deviation": math.sqrt(sum(answer["standard_deviation"] ** 2 for answer in counted)),
        }


def ask_hospitals(
    study: StudyFile, view_file: Path, *, nodes: Sequence[str], epsilon: float, title: str, now: datetime
) -> Answers:
    """Ask the hospitals of ``study``, or those of ``nodes`` (by name or address), under its permit.

    A hospital that is at work on other questions is asked again when it says, for a few minutes.
    Raises InputError VHT-INPUT-QUESTION for a view that is no JSON object, VHT-INPUT-NODE for an unknown hospital.
    """
    chosen = _chosen(study, nodes)
    permit = study.study.permit.read_text().strip()
    key = SigningKey.read(study.study.user_key)
    question = FeasibilityQuestion.from_claims(
        {
            "title": title,
            "created_at": now.isoformat(),
            "permit_id": str(unverified_claims(permit).get("permit_id", "")),
            "user_kid": key.public.kid,
            "purpose": study.study.purpose.value,
            "categories": [category.value for category in study.study.categories],
            "dataset_ids": [node.dataset for node in chosen],
            "view": _view(view_file),
            "epsilon": epsilon,
        }
    )
    signed = key.sign(question.claims(), typ=FEASIBILITY_TYP)
    body = {"permit": permit, "question": signed, "user_key": key.public.jwk()}
    answers: dict[str, dict[str, Any]] = {}
    heads = KnownHeads(study.federation.coordinator / "heads")
    by_name = {node.name: node for node in chosen}

    def ask(name: str) -> None:
        with Client(by_name[name].url, study.federation.ca, timeout_s=TIMEOUT_S) as client:
            try:
                evidence_key = dict(client.get("/identity")["evidence_key"])
                answer = dict(client.post("/feasibility", json=body, headers=heads.headers(evidence_key)))
            except (KeyError, TypeError, ValueError) as error:
                raise WireError(f"{name} answered with no count", code="VHT-WIRE-QUESTION") from error
        heads.note(evidence_key, answer.get("receipt"))
        answers[name] = answer

    refused = ask_each(by_name, ask)
    return Answers(answers, refused)


def _chosen(study: StudyFile, nodes: Sequence[str]) -> list[NodeRef]:
    known = {name: node for node in study.nodes for name in (node.name, node.url)}
    unknown = [name for name in nodes if name not in known]
    if unknown:
        raise InputError(
            f"the study names no hospital {', '.join(unknown)}",
            code="VHT-INPUT-NODE",
            hint=f"it names {', '.join(node.name for node in study.nodes)}",
        )
    return [known[name] for name in nodes] if nodes else list(study.nodes)


def _view(path: Path) -> dict[str, Any]:
    try:
        view = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} is no ViewDefinition in JSON", code="VHT-INPUT-QUESTION") from error
    if not isinstance(view, dict):
        raise InputError(f"{path.name} is no ViewDefinition in JSON", code="VHT-INPUT-QUESTION")
    return view
