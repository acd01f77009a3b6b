"""Who may ask how many patients there are, what the operator and the auditor see of it, and what a crash costs."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kit.console_session import Console
from kit.feasibility_questions import ask, asked_of, question, view
from kit.hospital import DATASET, Hospital

from connector.listeners.outward import outward_app
from connector.node import Node
from connector.settings import NodeSettings
from vht_federate.domain.feasibility import FEASIBILITY_TYP
from vht_federate.domain.law import DataCategory, Purpose
from vht_federate.errors import (
    CohortError,
    InputError,
    PermitError,
    RefusedError,
    RevokedError,
    VerificationError,
)
from vht_federate.evidence.event_text import describe
from vht_federate.evidence.ledger_check import check_ceiling
from vht_federate.evidence.node_log import read_node_log
from vht_federate.evidence.query_record import queries_drawn
from vht_federate.evidence.visit_record import visit_records
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.signing.canonical import canonical_bytes
from vht_federate.signing.keys import SigningKey
from vht_federate.testing.asgi import AppClient


def test_a_question_is_judged_as_a_study_is(stocked: Hospital) -> None:
    stranger = SigningKey.generate()
    with asked_of(stocked) as node:
        for changes, code in (
            ({"key": stranger}, "VHT-PERMIT-USER"),
            ({"purpose": Purpose.EDUCATION}, "VHT-PERMIT-PURPOSE"),
            ({"dataset_ids": ("urn:else",)}, "VHT-PERMIT-DATASET"),
            ({"permit_id": "another"}, "VHT-PERMIT-MISMATCH"),
        ):
            with pytest.raises(PermitError) as caught:
                ask(node, stocked, **changes)
            assert caught.value.code == code
            assert stocked.log()[-1]["body"]["code"] == code
        with pytest.raises(RefusedError, match="24 hours"):
            ask(node, stocked, created_at=datetime.now(UTC) - timedelta(days=2))
        with pytest.raises(PermitError) as sealed:
            ask(node, stocked, stocked.permit(permit_id="p3", release_types=("component",)), permit_id="p3")
        assert sealed.value.code == "VHT-PERMIT-RELEASE"
        forged = stocked.user.sign({"title": "x"}, typ=FEASIBILITY_TYP)
        with pytest.raises(InputError, match="does not fit"):
            node.feasibility.answer(stocked.permit(), forged, stocked.user.public.jwk())
        stocked.issuer.revoke("permit-1")
        with pytest.raises(RevokedError):
            ask(node, stocked)
        assert "query.drawn" not in stocked.kinds()


def test_a_node_may_answer_none_and_one_without_data_says_so(hospital: Hospital) -> None:
    with asked_of(hospital) as node:
        with pytest.raises(CohortError):
            ask(node, hospital)
        node.feasibility.settings = node.feasibility.settings.model_copy(update={"feasibility_epsilon": 0.0})
        with pytest.raises(RefusedError) as caught:
            ask(node, hospital)
        assert caught.value.code == "VHT-REFUSED-FEASIBILITY"


def test_the_outward_listener_answers_and_the_operator_sees_what_was_told(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        browser = AppClient(outward_app(node))
        body = {"permit": stocked.permit(), "question": question(stocked), "user_key": stocked.user.public.jwk()}
        answer = browser.post("/feasibility", json=body)
        assert answer.status_code == 200
        assert (answer.json()["count"], answer.json()["node"]) == (40, "hospital-1")
        assert browser.post("/feasibility", json={**body, "question": "x.y.z"}).status_code == 403
        assert browser.get("/api/feasibility").status_code == 404
        console = Console(node, stocked)
        assert console.browser.get("/questions").status_code == 303
        console.log_in()
        page = console.browser.get("/questions").text
        assert "How many men?" in page
        assert ">40<" in page
        assert console.browser.get("/log").text.count("A feasibility question answered") == 1


def audited(node: Node, hospital: Hospital) -> Any:
    export = node.evidence.export("permit-1")
    return read_node_log("nodes/h.json", canonical_bytes(export), "hospital-1", "permit-1", node.key.public)


def test_an_auditor_recomputes_what_questions_cost_and_finds_no_answer_without_its_spend(stocked: Hospital) -> None:
    from vht_federate.domain.permit import Permit
    from vht_federate.signing.keys import unverified_claims

    token = stocked.permit()
    permit = Permit.from_claims(unverified_claims(token))
    with asked_of(stocked) as node:
        for where in ("gender = 'male'", "gender = 'female'"):
            ask(node, stocked, token, view=view(where=where))
        log = audited(node, stocked)
        assert visit_records(log) == {}
        queries = queries_drawn(log)
        assert [query.label for query in queries] == ["feasibility", "feasibility"]
        total = check_ceiling("nodes/h.json", permit, [], epsilon_by_population, queries)
        assert 0.3 < total["train"] < 0.6
        assert "feasibility question" in describe(log.entries[-1])
        node.evidence.append("feasibility.answered", {"query": "q-unpaid"}, permit_id="permit-1")
        with pytest.raises(VerificationError, match=r"follows no query\.drawn"):
            queries_drawn(audited(node, stocked))


def test_a_crash_between_spend_and_answer_has_spent(stocked: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    with asked_of(stocked) as node:

        def die(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(type(node.feasibility), "_keep", die)
            with pytest.raises(KeyboardInterrupt):
                ask(node, stocked)
        assert stocked.kinds()[-1] == "query.drawn"
    with asked_of(stocked) as node:
        assert node.overview.budget()["datasets"][DATASET]["spent"]["train"] > 0.29
        assert ask(node, stocked)["count"] == 40
        assert stocked.kinds().count("query.drawn") == 2


def test_the_command_asks_the_hospitals_of_a_study(stocked: Hospital, tmp_path: Path) -> None:
    import contextvars
    import json

    import tomli_w
    from kit.served_node import Served
    from typer.testing import CliRunner

    from vht_federate.cli import app

    stocked.user = SigningKey.create(tmp_path / "user.key")
    (tmp_path / "permit.jwt").write_text(stocked.permit())
    definition = tmp_path / "view.json"
    definition.write_text(json.dumps(view()))
    NodeSettings.read(stocked.state).model_copy(update={"feasibility_seconds": 0.5}).write(stocked.state)
    served = Served(stocked)
    try:
        served.await_health()
        study = {
            "study": {"id": "s", "title": "T", "permit": "permit.jwt", "user_key": "user.key",
                      "purpose": Purpose.RESEARCH_ALGORITHMS.value, "categories": [DataCategory.EHR.value]},
            "component": {"name": "cardio-risk", "profile": "cardiometabolic"},
            "privacy": {"epsilon": 1.0, "delta": 1e-5},
            "federation": {"coordinator": "c", "ca": str(stocked.tls.ca)},
            "nodes": [{"name": "hospital-1", "url": served.settings.outward_url, "dataset": DATASET},
                      {"name": "gone", "url": "https://127.0.0.1:1", "dataset": DATASET}],
        }  # fmt: skip
        (tmp_path / "study.toml").write_text(tomli_w.dumps(study))

        def command(*more: str) -> dict[str, Any]:
            line = ["--json", "study", "feasibility", str(tmp_path / "study.toml"), str(definition), *more]
            done = contextvars.copy_context().run(CliRunner().invoke, app, line)
            return dict(json.loads(done.stdout))

        answer = command("--epsilon", "0.3")["data"]
        assert answer["nodes"]["hospital-1"]["repeated"] is False
        assert answer["refused"]["gone"]["code"] == "VHT-UNAVAILABLE-PEER"
        again = command("--epsilon", "0.3", "--node", "hospital-1")["data"]
        assert again["total"] == answer["nodes"]["hospital-1"]["count"]
        assert command("--node", "nobody")["error"]["code"] == "VHT-INPUT-NODE"
        assert command("--node", "gone")["error"]["code"] == "VHT-UNAVAILABLE-PEER"
    finally:
        served.end()
