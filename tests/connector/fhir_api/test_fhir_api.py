"""The local FHIR API: inside only, what the permit opens and nothing else, and a record of every access."""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from fhir.resources.R4B import get_fhir_model_class
from kit.fhir_api_client import Program, events, queries, serving
from kit.fhir_resources import SNOMED, condition, observation, patient, write
from kit.hospital import CANARY, COLUMNS, make_hospital, write_fhir

from connector.fhir.subject_keys import subject_key
from connector.listeners.internal import internal_app
from connector.listeners.outward import outward_app
from connector.views.sql import run
from connector.views.sql.shipped import shipped
from vht_federate.testing.asgi import AppClient

STORED = 40
WITHOUT_AGE = tuple(name for name in COLUMNS if name not in ("age", "male"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A program at a node with forty patients and some more, one of whom opted out before the permit."""
    hospital = make_hospital(tmp_path_factory.mktemp("api"))
    folder = write_fhir(hospital.root / "fhir")
    panel = [
        {"code": {"coding": [{"system": "http://loinc.org", "code": code}]}, **value}
        for code, value in (
            ("8480-6", {"valueQuantity": {"value": 121.0, "system": "http://unitsofmeasure.org", "code": "mm[Hg]"}}),
            ("8462-4", {"valueQuantity": {"value": 81.0, "system": "http://unitsofmeasure.org", "code": "mm[Hg]"}}),
        )
    ]
    more = [
        patient("old", birthDate="1920-01-01"),
        observation("panel", "old", code={"coding": [{"system": "http://loinc.org", "code": "85354-9"}]},
                    component=panel, valueQuantity=None, effectiveDateTime="2020-01-01T10:00:00Z"),
        observation("secret", 1, code={"coding": [{"system": "http://loinc.org", "code": "72166-2"}]}),
        condition("c-secret", "86406008", "2011-01-01"),
        patient("out"),
        observation("o-out", "out"),
        patient("replaced", active=False),
        observation("o-replaced", "replaced"),
    ]  # fmt: skip
    write(folder, "more.ndjson", more)
    with hospital.open(start=False) as node:
        node.ingest(folder)
        node.opt_out("pout", since=datetime.now(UTC) - timedelta(days=3))
    with serving(hospital) as registered_program:
        yield registered_program
    hospital.issuer.stop()


def outcome(answer: Any, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/fhir+json")
    operation_outcome = get_fhir_model_class("OperationOutcome").model_validate(answer.json())
    assert code in operation_outcome.issue[0].diagnostics


def view_parameters(view: Any, **more: Any) -> dict[str, Any]:
    parts = [{"name": name.replace("since", "_since"), **value} for name, value in more.items()]
    return {"resourceType": "Parameters", "parameter": [{"name": "viewResource", "resource": view}, *parts]}


# --- where it is ------------------------------------------------------------------------------------------------------


def test_the_outward_listener_has_no_fhir(program: Program) -> None:
    outward, token = AppClient(outward_app(program.node)), program.token()
    for path in (
        "/fhir/metadata",
        "/fhir/Patient",
        "/fhir/token",
        "/fhir/$export",
        "/api/fhir-clients",
        "/api/audit-events",
    ):
        for method in ("GET", "POST"):
            answer = outward.request(method, path, headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 404, path


def test_what_it_can_do_is_public_and_valid(program: Program) -> None:
    statement = program.web.get("/fhir/metadata").json()
    get_fhir_model_class("CapabilityStatement").model_validate(statement)
    assert "_lastUpdated" not in json.dumps(statement)
    assert all("_since is refused" in operation["documentation"] for operation in statement["rest"][0]["operation"])
    assert {resource["type"] for resource in statement["rest"][0]["resource"]} == {
        "Patient", "Observation", "Condition", "MedicationRequest", "Encounter"}  # fmt: skip
    smart = program.web.get("/fhir/.well-known/smart-configuration").json()
    assert smart["token_endpoint"] == program.token_url
    assert smart["token_endpoint_auth_signing_alg_values_supported"] == ["RS384", "ES384"]


def test_without_a_token_or_with_an_operators_nothing_is_answered(program: Program) -> None:
    operator = program.node.files.operator_token.read_text().strip()
    for path in ("Patient", "Observation/x", "$export", "export-status/x", "export-file/x/y"):
        outcome(program.web.get(f"/fhir/{path}"), 401, "VHT-REFUSED-TOKEN")
        outcome(program.get(path, operator), 401, "VHT-REFUSED-TOKEN")


@pytest.mark.parametrize(
    ("path", "status"),
    [("Practitioner", 404), ("Group/1/$export", 404), ("Patient/a/b/c", 404), ("Patient?name=Zebedee", 400),
     ("Observation?code=8480-6&_include=*", 400), ("Observation?date=yesterday", 400), ("Patient?_page=nonsense", 400),
     ("Patient?_lastUpdated=gt2100", 400), ("Patient?_id=../../etc", 400),
     ("Patient/Zebedee", 404), ("Patient?_format=xml", 400)],
)  # fmt: skip
def test_what_is_not_understood_is_refused_without_being_repeated(program: Program, path: str, status: int) -> None:
    answer = program.get(path)
    outcome(answer, status, "VHT-INPUT")
    assert not {"Zebedee", "etc", "yesterday", "nonsense"} & set(
        answer.text.replace("/", " ").replace("=", " ").split()
    )


# --- what it shows ----------------------------------------------------------------------------------------------------


def test_patients_are_those_who_did_not_opt_out_under_names_of_the_permit(program: Program) -> None:
    patients = program.search("Patient")
    assert len(patients) == STORED + 1
    key = program.node.secret.subject_key
    stored = {subject_key(key, f"p{n}") for n in range(STORED)} | {subject_key(key, "pout"), subject_key(key, "pold")}
    assert not {resource["id"] for resource in patients} & stored
    assert CANARY not in json.dumps(patients)
    for resource in patients:
        get_fhir_model_class("Patient").model_validate(resource)
        assert set(resource) <= {"resourceType", "id", "gender", "birthDate", "_birthDate"}
    assert [resource for resource in patients if "_birthDate" in resource]  # the one who is over 89


def test_observations_are_those_of_the_permits_columns(program: Program) -> None:
    observations = program.search("Observation?_count=7")
    assert len(observations) == STORED + 1
    for resource in observations:
        get_fhir_model_class("Observation").model_validate(resource)
    visible_patients = {f"Patient/{resource['id']}" for resource in program.search("Patient")}
    assert {resource["subject"]["reference"] for resource in observations} <= visible_patients
    [panel] = [resource for resource in observations if "component" in resource]
    assert [part["code"]["coding"][0]["code"] for part in panel["component"]] == ["8480-6"]
    assert panel["code"]["extension"][0]["valueCode"] == "masked"
    assert "72166-2" not in json.dumps(observations)
    assert program.search("Encounter") == []


def test_days_are_shifted_by_one_offset_per_patient(program: Program) -> None:
    by_patient: dict[str, set[timedelta]] = {}
    for resource in program.search("Observation"):
        if "component" not in resource:
            effective = datetime.fromisoformat(resource["effectiveDateTime"])
            by_patient.setdefault(resource["subject"]["reference"], set()).add(
                datetime(2009, 3, 1, 10, tzinfo=UTC) - effective
            )
    assert len(by_patient) == STORED
    offsets = [offset for patient_offsets in by_patient.values() for offset in patient_offsets]
    assert len(offsets) == STORED
    assert all(timedelta(days=1) <= offset <= timedelta(days=365) for offset in offsets)
    assert len(set(offsets)) > STORED // 2


@pytest.mark.parametrize("kind", ["Patient", "Observation", "Condition"])
def test_each_resource_of_a_search_reads_back_alone(program: Program, kind: str) -> None:
    token = program.token()
    for resource in program.search(kind, token)[:3]:
        assert program.get(f"{kind}/{resource['id']}", token).json() == resource
        assert program.search(f"{kind}?_id={resource['id']},unknown", token) == [resource]


def test_searches_by_patient_code_and_shifted_day(program: Program) -> None:
    token = program.token()
    observations = [resource for resource in program.search("Observation", token) if "component" not in resource]
    first = observations[0]
    name, day = first["subject"]["reference"], first["effectiveDateTime"][:10]
    for patient_ in (f"patient={name}", f"subject={name.removeprefix('Patient/')}"):
        assert program.search(f"Observation?{patient_}", token) == [first]
    assert program.search(f"Observation?{patient_}&date=lt{day}", token) == []
    on_day = {resource["id"] for resource in observations if resource["effectiveDateTime"][:10] == day}
    assert {resource["id"] for resource in program.search(f"Observation?date={day}", token)} == on_day
    later = {resource["id"] for resource in observations if resource["effectiveDateTime"][:10] > day}
    assert {resource["id"] for resource in program.search(f"Observation?date=gt{day}&code=8480-6", token)} == later
    assert len(program.search("Observation?combo-code=http://loinc.org|8480-6", token)) == STORED + 1
    assert program.search("Observation?code=|8480-6", token) == []
    assert program.search("Condition?code=86406008", token) == []  # held, and not in the permit
    posted = program.call("POST", "/fhir/Observation/_search", token, data={"patient": name})
    assert posted.json()["entry"][0]["resource"] == first


def test_columns_without_age_and_sex_show_neither(program: Program, tmp_path_factory: pytest.TempPathFactory) -> None:
    hospital = make_hospital(tmp_path_factory.mktemp("narrow"))
    folder = write_fhir(hospital.root / "fhir")
    stored_encounter = {"resourceType": "Encounter", "id": "e1", "status": "finished", "class": {"code": "AMB"},
                        "subject": {"reference": "Patient/p1"}, "period": {"start": "2010-01-01"}}  # fmt: skip
    write(
        folder,
        "more.ndjson",
        [stored_encounter, condition("c9", "22298006", "2011-01-01", encounter={"reference": "Encounter/e1"})],
    )
    with hospital.open(start=False) as node:
        node.ingest(folder)
    with serving(hospital, columns=(*WITHOUT_AGE, "fhir:Encounter")) as narrow:
        assert {key for resource in narrow.search("Patient") for key in resource} == {"resourceType", "id"}
        [encounter] = narrow.search("Encounter")
        assert encounter["class"]["code"] == "AMB"
        [diagnosis] = [resource for resource in narrow.search("Condition") if "encounter" in resource]
        assert diagnosis["encounter"] == {"reference": f"Encounter/{encounter['id']}"}
        narrow_ids, program_ids = (
            {resource["id"] for resource in narrow.search("Patient")},
            {resource["id"] for resource in program.search("Patient")},
        )
        assert not narrow_ids & program_ids
        assert narrow.search(f"Condition?code={SNOMED}|22298006&onset-date=ge2000") != []
    hospital.issuer.stop()


def test_a_view_runs_over_what_the_permit_shows(program: Program) -> None:
    token, view = program.token(), shipped("observation_codings")
    answer = program.call("POST", "/fhir/$viewdefinition-run", token, json=view_parameters(view))
    assert answer.status_code == 200, answer.text
    expected = run(view, program.search("Observation", token))
    assert answer.json() == expected
    lines = program.call(
        "POST", "/fhir/ViewDefinition/$viewdefinition-run?_format=ndjson", token, json=view_parameters(view)
    )
    assert [json.loads(line) for line in lines.text.splitlines()] == expected
    sheet = program.call(
        "POST", "/fhir/$viewdefinition-run", token,
        json=view_parameters(view, format={"valueCode": "csv"}, _limit={"valueInteger": 3}),
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(sheet.text)))
    assert [row["observation"] for row in rows] == [row["observation"] for row in expected[:3]]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"resourceType": "Parameters", "parameter": [{"name": "viewReference", "valueReference": {"reference": "x"}}]},
        view_parameters({"resource": "Practitioner", "select": [{"column": [{"name": "a", "path": "id"}]}]}),
        view_parameters({"resource": "Patient", "select": [{"column": [{"name": "a", "path": "read_csv('passwd')"}]}]}),
        view_parameters(shipped("patients"), source={"valueString": "file:///etc/passwd"}),
        view_parameters(shipped("patients"), _format={"valueCode": "parquet"}),
        view_parameters(shipped("patients"), since={"valueInstant": "2020-01-01T00:00:00Z"}),
    ],
)  # fmt: skip
def test_views_that_reach_outside_or_are_none_are_refused(program: Program, parameters: Any) -> None:
    answer = program.call("POST", "/fhir/$viewdefinition-run", json=parameters)
    outcome(answer, 400, "VHT-")
    assert "passwd" not in answer.text


def test_a_body_that_is_too_large_is_refused(program: Program) -> None:
    outcome(program.call("POST", "/fhir/$viewdefinition-run", content=b" " * (10 << 20)), 413, "VHT-INPUT-SIZE")


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_every_access_is_an_audit_event_with_its_balp_profile(program: Program) -> None:
    token = program.token()
    [resource, *_] = program.search("Patient", token)
    before = len(events(program.node))
    name = resource["id"]
    program.get(f"Patient/{name}", token)
    program.get(f"Observation?patient=Patient/{name}&code=8480-6,999-MRN", token)
    program.get("Observation?patient=Zebedee", token)
    program.get("Condition", token)
    program.get("Patient?family=Zebedee", token)
    program.get("Patient", "nobody")
    audit_events = events(program.node)[before:]
    for event in audit_events:
        get_fhir_model_class("AuditEvent").model_validate(event)
    profiles = [event.get("meta", {}).get("profile", [""])[0].rpartition(".")[2] for event in audit_events]
    assert profiles == ["PatientRead", "PatientQuery", "Query", "Query", "", ""]
    assert [event["outcome"] for event in audit_events] == ["0", "0", "0", "0", "4", "4"]
    assert [event["action"] for event in audit_events] == ["R", "E", "E", "E", "E", "E"]
    assert [queries(event) for event in audit_events[1:4]] == [
        f"Observation?patient={name}&code=8480-6%2Cother", "Observation?patient=unknown", "Condition?"]  # fmt: skip
    assert "Zebedee" not in json.dumps(audit_events)
    visible_patients = [
        entity["what"]["reference"] for entity in audit_events[0]["entity"] if entity["role"]["code"] == "1"
    ]
    assert visible_patients == [f"Patient/{name}"]
    assert audit_events[-1]["agent"][0]["who"] == {"display": "unknown"}
    assert {event["agent"][0]["who"].get("identifier", {}).get("value") for event in audit_events[:-1]} == {program.id}


def test_the_operator_reads_the_access_log_and_nobody_else(program: Program) -> None:
    assert program.web.get("/api/audit-events").status_code == 403
    operator = {"Authorization": f"Bearer {program.node.files.operator_token.read_text().strip()}"}
    audit_events = program.web.get("/api/audit-events", headers=operator, params={"count": 2, "raw": True}).json()[
        "events"
    ]
    assert len(audit_events) == 2
    assert audit_events[0]["recorded"] >= audit_events[1]["recorded"]


def test_the_console_shows_clients_and_accesses_and_revokes(program: Program) -> None:
    node, hospital_permit = program.node, program.node.fhir_api.clients.get(program.id)
    assert hospital_permit is not None
    other = Program(node, program.web).register(hospital_permit.permit, "system/Patient.rs")
    other.get("Patient?name=Zebedee")
    browser = AppClient(internal_app(node))
    assert browser.get("/access").status_code == 303
    node.accounts.add("Dr Ada", "approver", "correct horse")
    browser.post("/login", data={"name": "Dr Ada", "password": "correct horse"})
    page = browser.get("/access").text
    assert {other.id, program.id} <= set(re.findall(r"[0-9a-f]{32}", page))
    assert "VHT-INPUT-SEARCH" in page
    assert "Zebedee" not in page
    assert "VHT-INPUT-SEARCH" in browser.get(f"/access?client={other.id}&refused=true").text
    assert browser.post(f"/access/{other.id}/revoke", data={"form_key": "forged"}).status_code == 403
    match = re.search(r'name="form_key" value="([^"]+)"', page)
    assert match
    assert browser.post(f"/access/{other.id}/revoke", data={"form_key": match[1]}).status_code == 303
    assert other.ask().status_code == 401
    assert "may no longer read" in browser.get("/log").text


def test_a_request_that_takes_too_long_is_cut_off(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    token = program.token()
    crossed = [{"forEach": "code.coding", "column": [{"name": f"c{n}", "path": "code"}]} for n in range(9)]
    slow = {"resource": "Observation", "status": "active", "select": crossed}
    limits = replace(program.node.fhir_api.limits, query_s=0.0)
    monkeypatch.setattr(program.node.fhir_api, "limits", limits)
    view = partial(program.call, "POST", "/fhir/$viewdefinition-run", token, json=view_parameters(slow))
    outcome(view(), 503, "VHT-UNAVAILABLE")
    outcome(program.get("Observation", token), 503, "VHT-UNAVAILABLE-DEADLINE")
    monkeypatch.setattr(program.node.fhir_api, "limits", replace(limits, query_s=60.0, view_rows=3))
    outcome(view(), 400, "VHT-VIEW-LIMIT")
    plain = {"resource": "Observation", "status": "active", "select": [{"column": [{"name": "id", "path": "id"}]}]}
    narrow = partial(program.call, "POST", "/fhir/$viewdefinition-run", token, json=view_parameters(plain))
    roomy = replace(limits, query_s=60.0)
    monkeypatch.setattr(program.node.fhir_api, "limits", replace(roomy, view_answer=100))
    outcome(narrow(), 400, "VHT-VIEW-LIMIT")
    monkeypatch.setattr(program.node.fhir_api, "limits", roomy)
    assert narrow().status_code == 200
