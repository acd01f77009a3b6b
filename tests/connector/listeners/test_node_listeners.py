"""Two listeners, one node: outward knows tokens of visits, internal knows operators, and neither knows the other."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from kit.commands import vht_node
from kit.hospital import DATASET, PLAN, Hospital, approved, await_that

from connector.catalogue import VISIT_FORMAT
from connector.catalogue.variables import VARIABLES
from connector.fhir.resources import TABLES
from connector.http_guards import MAXIMUM_BODY
from connector.listeners.internal import internal_app
from connector.listeners.outward import outward_app
from connector.node import Node
from vht_federate.evidence.entry import RECEIPT_TYP
from vht_federate.signing.keys import PublicKey
from vht_federate.testing.asgi import AppClient

DIGEST = "ab" * 32


class Open:
    """A running node with a client of each listener."""

    def __init__(self, node: Node, hospital: Hospital) -> None:
        self.node, self.hospital = node, hospital
        token = hospital.state.joinpath("operator.token").read_text().strip()
        self.out = AppClient(outward_app(node), raise_app_exceptions=False)
        self.operator = AppClient(internal_app(node), headers={"Authorization": f"Bearer {token}"})
        self.nobody = AppClient(internal_app(node), raise_app_exceptions=False)

    def request(self, **headers: str) -> dict[str, Any]:
        body = {
            "permit": self.hospital.permit(),
            "study": self.hospital.study(),
            "user_key": self.hospital.user.public.jwk(),
        }
        answer = self.out.post("/visits", json=body, headers={**self.hospital.headers(), **headers})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def asked(self, method: str, path: str, token: str, **options: Any) -> Any:
        """What a visit's coordinator is answered."""
        return self.out.request(method, path, headers=self.hospital.headers(method, path, token), **options)

    def decide(self, visit: str, verb: str, **body: str) -> Any:
        return self.operator.post(f"/api/visits/{visit}/{verb}", json=body)


@pytest.fixture
def node(stocked: Hospital) -> Iterator[Open]:
    with stocked.open() as opened:
        opened.accounts.add("Dr Ada", "approver", "correct horse")
        yield Open(opened, stocked)


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_the_control_plane_loads_neither_torch_nor_sdv() -> None:
    code = "import connector.listeners.serve, sys; print(sorted({'torch', 'sdv', 'flwr'} & set(sys.modules)))"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "[]"


def test_internal_routes_do_not_exist_outside_nor_outward_ones_inside(node: Open) -> None:
    for path in (
        "/api/status",
        "/api/visits",
        "/login",
        "/log",
        "/datasets",
        "/",
        "/console",
        "/docs",
        "/openapi.json",
    ):
        answer = node.out.get(path, headers=dict(node.operator._headers))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "VHT-INPUT-NOT-FOUND")
    for path in ("/catalogue", "/identity", "/docs"):
        assert node.operator.get(path).status_code == 404
    assert node.operator.post("/visits", json={}).status_code == 404
    inside = {getattr(route, "path", "") for route in internal_app(node.node).routes}
    outside = {getattr(route, "path", "") for route in outward_app(node.node).routes}
    assert inside & outside == {"/health", "/visits/{visit_id}"}  # a page inside, an answer to a token outside


def test_a_visit_over_http_from_request_to_receipt(node: Open) -> None:
    created_visit = node.request()
    visit, token = created_visit["visit"], created_visit["token"]
    assert (created_visit["state"], created_visit["node"], created_visit["dataset"]) == (
        "requested",
        "hospital-1",
        DATASET,
    )
    assert node.decide(visit, "approve", operator="Dr Ada").status_code == 200
    await_that(lambda: node.asked("GET", f"/visits/{visit}", token).json()["state"] == "ready")
    for job, number in PLAN.calls():
        node.node.gate.begin(visit, job, number, DIGEST)
        node.node.gate.release(visit, job, number, DIGEST, 1)
    receipts = [
        node.asked("POST", f"/visits/{visit}/releases", token, json={"kind": "component", "sha256": DIGEST}),
        node.asked("POST", f"/visits/{visit}/close", token, json={"reason": "done"}),
    ]
    key = PublicKey.from_jwk(node.out.get("/identity").json()["evidence_key"])
    kinds = [key.verify(answer.json()["receipt"], typ=RECEIPT_TYP)["kind"] for answer in receipts]
    assert kinds == ["release.acknowledged", "visit.closed"]
    again = node.asked("POST", f"/visits/{visit}/close", token, json={})
    assert again.json() == receipts[1].json()
    export = node.asked("GET", f"/visits/{visit}/evidence", token).json()
    assert export["permit_id"] == "permit-1"
    listed_visit = node.operator.get("/api/visits").json()["visits"][0]
    assert (listed_visit["operator"], listed_visit["state"], len(listed_visit["rounds"])) == ("Dr Ada", "closed", 3)
    assert listed_visit["rounds"][0]["output_bytes"] == 1


def test_a_release_of_a_kind_outside_the_permit_is_refused(node: Open) -> None:
    created_visit = node.request()
    approved(node.node, created_visit["visit"])
    path, token = f"/visits/{created_visit['visit']}/releases", created_visit["token"]
    nothing = node.asked("POST", path, token, json={"kind": "component", "sha256": DIGEST})
    assert nothing.json()["error"]["code"] == "VHT-REFUSED-STATE"
    node.node.gate.begin(created_visit["visit"], "train", 1, DIGEST)
    strange = node.asked("POST", path, token, json={"kind": "rows", "sha256": DIGEST})
    assert (strange.status_code, strange.json()["error"]["code"]) == (403, "VHT-EGRESS-RELEASE-TYPE")


def test_wrong_and_foreign_tokens_find_no_visit(node: Open) -> None:
    created_visit = node.request()
    stranger = node.node.secret.visit_token("v-0000000000000000")
    token = node.operator._headers["Authorization"].removeprefix("Bearer ")
    for wrong in ("", "nonsense", stranger, token, created_visit["token"][:-1], created_visit["token"] + "0"):
        for method, path in (("GET", ""), ("POST", "/close"), ("GET", "/evidence")):
            answer = node.asked(method, f"/visits/{created_visit['visit']}{path}", wrong, json={})
            assert (answer.status_code, answer.json()["error"]["message"]) == (404, "no such visit")
    assert node.asked("GET", "/visits/v-0000000000000000", stranger).status_code == 404
    assert node.node.visits.get(created_visit["visit"]).state == "requested"


def test_a_retried_request_gets_the_same_token_with_its_key_only(node: Open) -> None:
    body = {
        "permit": node.hospital.permit(),
        "study": node.hospital.study(),
        "user_key": node.hospital.user.public.jwk(),
    }
    first, again = (
        node.out.post("/visits", json=body, headers={**node.hospital.headers(), "Idempotency-Key": "k1"}).json()
        for _ in range(2)
    )
    assert again == first
    copied = node.out.post("/visits", json=body, headers=node.hospital.headers())
    assert copied.json()["error"]["code"] == "VHT-REFUSED-DUPLICATE"
    assert "token" not in copied.text


def test_without_the_operator_token_the_internal_api_does_nothing(node: Open) -> None:
    visit = node.request()["visit"]
    for headers in ({}, _bearer("wrong"), {"Authorization": "Basic b3A6b3A="}):
        for method, path in (
            ("GET", "/api/status"),
            ("GET", "/api/visits"),
            ("POST", f"/api/visits/{visit}/approve"),
            ("POST", f"/api/visits/{visit}/stop"),
            ("POST", "/api/ingest"),
            ("POST", "/api/opt-outs"),
        ):
            answer = node.nobody.request(method, path, headers=headers, json={})
            assert answer.status_code in (400, 403), path
            assert "error" in answer.json()
    assert node.node.visits.get(visit).state == "requested"


def test_malformed_requests_get_a_typed_error_that_repeats_nothing(node: Open) -> None:
    for content in (b"{", b"[]", b'{"permit": 7}', b'{"permit": "x", "study": {"canary-value": 1}, "user_key": {}}'):
        answer = node.out.post("/visits", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "VHT-INPUT"
        assert "canary-value" not in answer.text
    keyless = {"permit": node.hospital.permit(), "study": node.hospital.study(), "user_key": {"kty": "RSA"}}
    assert node.out.post("/visits", json=keyless).json()["error"]["code"] == "VHT-INPUT-KEY"
    large = node.out.post("/visits", content=b"x" * (MAXIMUM_BODY + 1))
    assert large.status_code == 400


def test_what_fails_inside_tells_the_client_nothing(node: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ValueError("patient Zebedee has 7.5")

    monkeypatch.setattr(node.node, "summary", broken)
    answer = node.out.get("/catalogue")
    assert answer.status_code == 500
    assert "Zebedee" not in answer.text


def test_the_stop_button_of_the_api_is_seen_by_the_coordinator(node: Open) -> None:
    created_visit = node.request()
    approved(node.node, created_visit["visit"])
    stopped = node.decide(created_visit["visit"], "stop", operator="Dr Ada", reason="a repair").json()
    assert (stopped["state"], stopped["code"]) == ("halted", "VHT-REFUSED-STOPPED")
    visit_status = node.asked("GET", f"/visits/{created_visit['visit']}", created_visit["token"]).json()
    assert (visit_status["state"], visit_status["code"]) == ("halted", "VHT-REFUSED-STOPPED")
    assert visit_status["reason"] == "stopped by the operator: a repair"


def test_an_operator_with_a_viewers_account_cannot_decide_even_with_the_token(node: Open) -> None:
    node.node.accounts.add("Vera", "viewer", "a long password")
    visit = node.request()["visit"]
    refused = node.decide(visit, "approve", operator="Vera")
    assert refused.json()["error"]["code"] == "VHT-REFUSED-ROLE"
    assert node.node.visits.get(visit).state == "requested"


@pytest.mark.parametrize("name", ["Dr Adda", "operator", "dr ada"])
def test_a_name_without_an_account_decides_nothing_and_opens_no_console(node: Open, name: str) -> None:
    visit = node.request()["visit"]
    for answer in (
        node.decide(visit, "approve", operator=name),
        node.decide(visit, "reject", operator=name),
        node.decide(visit, "stop", operator=name),
        node.operator.post("/api/log-in-links", json={"operator": name}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "VHT-REFUSED-OPERATOR-UNKNOWN")
    assert node.node.visits.get(visit).state == "requested"
    assert node.decide(visit, "reject", operator="Dr Ada").json()["state"] == "rejected"  # the control: an account may


def test_a_console_link_has_its_accounts_role(node: Open) -> None:
    node.node.accounts.add("Vera", "viewer", "a long password")
    link = node.operator.post("/api/log-in-links", json={"operator": "Vera"}).json()["url"]
    _, signed_in = node.node.accounts.log_in_with_code(link.rpartition("=")[2])
    assert (signed_in.actor.name, signed_in.actor.role) == ("Vera", "viewer")


def test_a_new_password_changes_no_role(hospital: Hospital) -> None:
    password = hospital.root / "password"
    password.write_text("correct horse\n")
    vht_node("operator", hospital.state, "Dr Ada", "--role", "approver", "--password-file", password)
    password.write_text("battery staple\n")
    again = vht_node("operator", hospital.state, "Dr Ada", "--password-file", password)
    assert again["role"] == "approver"
    assert vht_node("operator", hospital.state, "Vera", "--password-file", password)["role"] == "viewer"
    with hospital.open(start=False) as node:
        _, signed_in = node.accounts.log_in("Dr Ada", "battery staple")
        assert signed_in.actor.role == "approver"
    assert vht_node("operator", hospital.state, "Dr Ada", "--role", "viewer", "--password-file", password) == {
        "name": "Dr Ada",
        "role": "viewer",
    }


def test_ingest_and_opt_outs_over_the_api(node: Open) -> None:
    report = node.operator.post("/api/ingest", json={"folder": str(node.hospital.root / "fhir")}).json()
    assert (report["accepted"], report["duplicate"]) == (0, 90)
    assert node.operator.post("/api/opt-outs", json={"patient_id": "p1"}).json() == {"recorded": True}
    by_reference = {"patient_id": "https://ehr.example/a/long/way/to/the/base/of/this/server/r4/Patient/p1"}
    assert node.operator.post("/api/opt-outs", json=by_reference).json() == {"recorded": True}
    nobody = node.operator.post("/api/opt-outs", json={"patient_id": "Group/p1", "ahead": True})
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (400, "VHT-INPUT-PATIENT-ID")
    unknown = node.operator.post("/api/opt-outs", json={"patient_id": "p1-mistyped"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "VHT-INPUT-PATIENT")
    ahead = node.operator.post("/api/opt-outs", json={"patient_id": "not-here-yet", "ahead": True})
    assert ahead.json() == {"recorded": True}
    withdrawal = node.operator.request("DELETE", "/api/opt-outs", json={"patient_id": "p1"})
    assert withdrawal.json() == {"withdrawn": True}
    naive = node.operator.post("/api/opt-outs", json={"patient_id": "p1", "at": "2026-01-01T00:00:00"})
    assert naive.status_code == 400
    wrong = node.operator.post("/api/ingest", json={"folder": "/nowhere", "dataset": "other"})
    assert wrong.json()["error"]["code"] == "VHT-REFUSED-DATASET"


def test_the_catalogue_has_what_healthdcat_demands_of_a_non_public_dataset(node: Open) -> None:
    answer = node.out.get("/catalogue").json()
    (dataset,) = answer["dcat:dataset"]
    mandatory = {
        "dct:title", "dct:description", "dct:identifier", "dct:accessRights", "dcatap:applicableLegislation",
        "dcat:distribution", "dcat:theme", "healthdcatap:hdab", "healthdcatap:healthCategory",
        "healthdcatap:hasStructuredData", "healthdcatap:hasVariables", "dcat:contactPoint", "dcat:keyword", "dct:type",
        "dct:provenance",
    }  # fmt: skip
    assert mandatory <= set(dataset)
    assert dataset["dct:accessRights"]["@id"].endswith("access-right/NON_PUBLIC")
    assert any(theme["@id"].endswith("data-theme/HEAL") for theme in dataset["dcat:theme"])
    assert dataset["healthdcatap:hdab"]["cv:contactPoint"]["@type"] == "cv:ContactPoint"
    assert dataset["healthdcatap:numberOfUniqueIndividuals"]["@value"] == "40"
    assert [item["dct:format"]["@id"] for item in dataset["dcat:distribution"]] == [VISIT_FORMAT]
    assert all("dcatap:applicableLegislation" in item for item in dataset["dcat:distribution"])
    columns = {
        table["dct:title"]["@value"]: [column["csvw:name"] for column in table["csvw:column"]]
        for table in dataset["healthdcatap:hasVariables"]["csvw:table"]
    }
    assert columns == {name: ["subject", *(column for column, _ in schema)] for name, schema in TABLES.items()}
    prefixes = {key.split(":")[0] for key in _keys(answer) if ":" in key}
    assert prefixes <= set(answer["@context"])
    assert set(VARIABLES) == set(TABLES)


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "@context":
                yield key
                yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


def test_a_catalogue_of_few_patients_shows_no_count(hospital: Hospital) -> None:
    with hospital.open() as node:
        (dataset,) = AppClient(outward_app(node)).get("/catalogue").json()["dcat:dataset"]
    assert "healthdcatap:numberOfUniqueIndividuals" not in dataset
