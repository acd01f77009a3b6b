"""What a permit opens of data in other code systems: by the rule of a cohort, and told of nothing before it may be."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.feasibility_questions import ask as ask_question
from kit.feasibility_questions import asked_of, view
from kit.fhir_api_client import serving
from kit.fhir_resources import condition, observation, patient, prescription, write
from kit.hospital import COLUMNS, Hospital, make_hospital, write_fhir

from connector.duckdb_lockdown import locked
from connector.fhir import Store
from connector.fhir.codes import CodeMaps, read_code_maps
from connector.governance.permit_scope import permit_scope
from connector.views.port_codings import read_port_codings
from vht_federate.domain.permit import Permit
from vht_federate.errors import UnavailableError
from vht_federate.signing.keys import unverified_claims

GM, RXNORM = "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "http://www.nlm.nih.gov/research/umls/rxnorm"
INFARCT_GM = "code.coding.where(code = 'I21.4').exists()"


def coded(resource: dict[str, Any], *codings: tuple[str, str]) -> dict[str, Any]:
    element = "medicationCodeableConcept" if resource["resourceType"] == "MedicationRequest" else "code"
    return resource | {element: {"coding": [{"system": system, "code": code} for system, code in codings]}}


@pytest.fixture
def german(tmp_path: Path) -> Iterator[Hospital]:
    hospital = make_hospital(tmp_path)
    folder = write_fhir(hospital.root / "fhir")
    more = [
        *(patient(number) for number in range(100, 130)),
        *(observation(f"n{number}", number) for number in range(100, 130)),
        *(coded(condition(f"gm{number}", "-", "2015", number), (GM, "I21.4")) for number in range(100, 130)),
        coded(condition("asthma", "-", "2015", 100), (GM, "J45.9")),
        coded(prescription("hct", "-", "2015", 100), (RXNORM, "316049"), ("https://hospital.example", "Zebedee")),
    ]
    write(folder, "more.ndjson", more)
    with hospital.open(start=False) as node:
        node.ingest(folder)
    yield hospital
    hospital.issuer.stop()


def test_the_local_api_shows_what_a_cohort_would_read_and_no_more(german: Hospital) -> None:
    with serving(german) as program:
        codes = {
            coding["code"]
            for kind, element in (("Condition", "code"), ("MedicationRequest", "medicationCodeableConcept"))
            for resource in program.search(kind)
            for coding in resource[element].get("coding", [])
        }
    assert codes == {"22298006", "I21.4", "316049"}


def test_the_scope_over_a_store_is_the_rule_of_a_cohort(german: Hospital) -> None:
    with german.open(start=False) as node:
        permit = Permit.from_claims(unverified_claims(german.permit()))
        installed, generation = node.visits.admission.installed, Store(node.files.fhir).current()
        assert generation is not None
        maps = read_code_maps()
        scope = permit_scope(permit, installed, maps)
        [component] = installed.allowed_by(permit)
        sources = [component.port(name).source for name in COLUMNS]
        with locked([generation.folder.resolve()]) as connection:
            over = scope.over(connection, generation)
            codings = read_port_codings(connection, generation, sources, maps)
            blind = permit_scope(permit, installed, CodeMaps(())).over(connection, generation)
    assert {coding for source in sources for coding in codings.of(source)} <= over.codes
    assert {(GM, "I21.4"), (RXNORM, "316049")} <= over.codes - scope.codes
    assert "I21.4" in over.rows["Condition"]
    assert "I21.4" not in scope.rows["Condition"], "before it is taken over the data it says nothing of them"
    assert blind.codes == scope.codes
    assert over.rows["Patient"] == scope.rows["Patient"] == "active"


def test_a_question_counts_patients_by_the_maps(german: Hospital) -> None:
    with asked_of(german) as node:
        assert ask_question(node, german, view=view("Condition", INFARCT_GM))["count"] == 30


def test_a_new_code_in_the_data_makes_no_asked_question_a_new_one(german: Hospital) -> None:
    """Else whether an answer is repeated would tell that somebody has a code that nobody had."""
    definition = view("Condition", INFARCT_GM)
    with asked_of(german) as node:
        first = ask_question(node, german, view=definition)
        more = write(german.root / "more", "m.ndjson", [coded(condition("new", "-", "2015", 101), (GM, "I22.8"))])
        node.ingest(more)
        again = ask_question(node, german, view=definition)
        assert (again["repeated"], again["count"]) == (True, first["count"])
        (german.state / "code-maps").mkdir()
        (german.state / "code-maps" / "ours.csv").write_text(
            f"system,code,means_system,means_code\n{GM},J45.9,http://snomed.info/sct,22298006\n"
        )
        assert ask_question(node, german, view=definition)["repeated"] is False  # by another rule, another question


def test_a_code_map_that_is_none_is_not_described_to_who_asks(
    german: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    with asked_of(german) as node:
        (german.state / "code-maps").mkdir()
        (german.state / "code-maps" / "pharmacy.csv").write_text("nonsense\n")
        with caplog.at_level("WARNING"), pytest.raises(UnavailableError) as caught:
            ask_question(node, german, view=view("Condition", INFARCT_GM))
    assert caught.value.code == "VHT-UNAVAILABLE-CODE-MAP"
    assert "pharmacy" not in caught.value.message
    assert any("pharmacy" in record.facts["cause"] for record in caplog.records if hasattr(record, "facts"))
    assert "query.drawn" not in german.kinds()
