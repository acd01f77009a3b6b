"""One hospital that is busy, or answers nonsense, costs a question of feasibility nothing but that hospital's count."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kit.planned_studies import NOW, study_file
from kit.scripted_service import served

import vht_federate.client as client_module
from strategies.feasibility import Answers, ask_hospitals
from vht_federate.errors import UnavailableError
from vht_federate.signing.keys import SigningKey

COUNT = {"count": 40, "standard_deviation": 2.0, "receipt": "r"}
BUSY = UnavailableError("at work", code="VHT-UNAVAILABLE-QUESTION", retry_after_s=7)


def asked(folder: Path, monkeypatch: pytest.MonkeyPatch, *answers: Any, identity: Any = None) -> Answers:
    """Hospital h1 gives ``answers`` one by one, and hospital h2 is not there. Nobody waits."""
    waits: list[float] = []
    clock = SimpleNamespace(sleep=waits.append, monotonic=lambda: sum(waits))
    monkeypatch.setattr(client_module, "time", clock)
    study = study_file(folder)
    (folder / "view.json").write_text(json.dumps({"resource": "Patient"}))
    with served(folder / "pki") as service:
        service.answers = {
            "/identity": [identity or {"evidence_key": SigningKey.generate().public.jwk()}],
            "/feasibility": list(answers),
        }
        nodes = (study.nodes[0].model_copy(update={"url": service.url}), study.nodes[1])
        federation = study.federation.model_copy(update={"ca": service.ca})
        study = study.model_copy(update={"nodes": nodes, "federation": federation})
        return ask_hospitals(study, folder / "view.json", nodes=[], epsilon=0.1, title="How many?", now=NOW)


def test_a_hospital_at_work_on_other_questions_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = asked(tmp_path, monkeypatch, BUSY, BUSY, COUNT)
    assert answers.by_node == {"h1": COUNT}
    assert {name: error.code for name, error in answers.refused.items()} == {"h2": "VHT-UNAVAILABLE-PEER"}


@pytest.mark.parametrize("identity", ["no identity", {"evidence_key": 7}, {"evidence_key": "x"}, None])
def test_an_answer_that_is_no_count_is_that_hospitals_error(
    identity: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = asked(tmp_path, monkeypatch, ["no count"], identity=identity)
    assert answers.by_node == {}
    assert answers.refused["h1"].code in {"VHT-WIRE-QUESTION", "VHT-WIRE-HTTP"}
