"""`vht node codes check` and its warnings: codes that mean nothing here, and ports that can never be filled."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.commands import vht_node
from kit.fhir_resources import KEY, LOINC, condition, observation, patient, prescription, quantity, write
from kit.hospital import COMPONENT, PROFILE, Hospital, make_hospital, write_fhir
from typer.testing import CliRunner

from connector.fhir import ingest
from connector.fhir.codes import CodeMaps, read_code_maps
from connector.quality.code_coverage import CodeCoverage, code_coverage
from connector.quality.survey import survey
from connector.quality.survey_figures import CountDisclosure
from vht_federate.cli import app
from vht_federate.errors import CohortError, InputError

CARDIO = COMPONENT.component
GM, RXNORM = "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "http://www.nlm.nih.gov/research/umls/rxnorm"
LOCAL = "https://hospital.example/codes"


def takes(ident: str, system: str, code: str, number: int) -> dict[str, Any]:
    concept = {"coding": [{"system": system, "code": code}]}
    return prescription(ident, "-", "2005", number) | {"medicationCodeableConcept": concept}


def has(ident: str, system: str | None, code: str, number: int) -> dict[str, Any]:
    coding = {"code": code} | ({"system": system} if system else {})
    return condition(ident, "-", "2005", number) | {"code": {"coding": [coding]}}


ITEMS = [
    *(patient(number) for number in range(1, 31)),
    *(observation(f"o{number}", number) for number in range(1, 31)),
    *(takes(f"h{number}", RXNORM, "316049", number) for number in range(1, 13)),  # hydrochlorothiazide
    *(takes(f"s{turn}-{number}", RXNORM, "316672", number) for number in range(1, 17) for turn in range(2)),
    *(takes(f"z{number}", LOCAL, "Zebedee", number) for number in range(1, 4)),
    *(has(f"e{number}", GM, "E11.90", number) for number in range(1, 13)),
    *(has(f"k{number}", GM, "I50.01", number) for number in range(1, 13)),  # known to a map, read by no port
    *(has(f"j{number}", GM, "J45.9", number) for number in range(1, 13)),
    *(has(f"n{number}", None, "asthma", number) for number in range(1, 12)),
    *(has(f"r{number}", GM, f"Q0{number}.0", number) for number in range(1, 5)),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coded")
    ingest(write(root / "in", "a.ndjson", ITEMS), root / "store", node_key=KEY, dataset="d")
    return root / "store"


def coverage(store: Path, maps: CodeMaps | None = None) -> CodeCoverage:
    return code_coverage(store, [CARDIO], maps or read_code_maps())


def test_codes_that_mean_nothing_are_listed_by_count_and_rounded(store: Path) -> None:
    told = coverage(store).to_dict(10)
    assert [
        (row["type"], row["system"], row["code"], row["resources"], row["patients"]) for row in told["unknown"]
    ] == [
        ("MedicationRequest", RXNORM, "316672", 30, 20),
        ("Condition", GM, "J45.9", 10, 10),
        ("Condition", None, "asthma", 10, 10),
    ]
    assert {row["type"]: (row["read"], row["known"], row["unknown"]) for row in told["types"]} == {
        "Observation": (1, 0, 0),
        "Condition": (1, 1, 6),
        "MedicationRequest": (1, 0, 2),
    }
    assert set(told["code_maps"]) == {"conditions", "medication"}


def test_codes_of_a_few_patients_are_counted_and_not_named(store: Path) -> None:
    told = coverage(store).to_dict(10)
    assert {(row["type"], row["system"], row["codes"]) for row in told["rare"]} == {
        ("MedicationRequest", LOCAL, 1),
        ("Condition", GM, 4),
    }
    assert "Zebedee" not in json.dumps(told)
    assert "Q01.0" not in json.dumps(told)
    assert "Zebedee" in json.dumps(coverage(store).to_dict(3)), "the node's smallest cell is the rule"


def test_a_hospitals_map_gives_its_codes_a_meaning(store: Path, tmp_path: Path) -> None:
    (tmp_path / "ours.csv").write_text(
        f"system,code,means_system,means_code\n{RXNORM},316672,http://www.whocc.no/atc,C10AA01\n"
    )
    told = coverage(store, read_code_maps(tmp_path)).to_dict(10)
    assert "316672" not in {row["code"] for row in told["unknown"]}
    assert {row["type"]: row["known"] for row in told["types"]}["MedicationRequest"] == 1


def test_ports_that_nothing_in_the_data_fills_are_named_with_what_follows(store: Path) -> None:
    with_maps = {(port["profile"], port["port"]): port for port in coverage(store).to_dict(10)["unfilled"]}
    assert (PROFILE, "antihypertensive") not in with_maps
    assert (PROFILE, "diabetes") not in with_maps
    assert with_maps[PROFILE, "cvd_10y"]["holds"] == (GM,)
    without = {(port["profile"], port["port"]): port for port in coverage(store, CodeMaps(())).to_dict(10)["unfilled"]}
    port = without[PROFILE, "antihypertensive"]
    assert (port["asks"], port["holds"]) == ("http://www.whocc.no/atc", (RXNORM, LOCAL))
    assert port["then"] == "everybody counts as no"


def test_a_panel_is_known_by_its_components_and_a_value_set_aside_fills_no_port(tmp_path: Path) -> None:
    part = {"code": {"coding": [{"system": LOINC, "code": "8480-6"}]}, "valueQuantity": quantity(150, "mm[Hg]")}
    panel = observation("panel", 1, code={"coding": [{"system": LOINC, "code": "85354-9"}]}, component=[part])
    del panel["valueQuantity"]
    wrong = observation("wrong", 1, code={"coding": [{"system": LOINC, "code": "4548-4"}]})  # mm[Hg] of haemoglobin
    ingest(write(tmp_path / "in", "a.ndjson", [patient(1), panel, wrong]), tmp_path / "s", node_key=KEY, dataset="d")
    told = coverage(tmp_path / "s").to_dict(1)
    assert told["unknown"] == []
    unfilled = {port["port"] for port in told["unfilled"] if port["profile"] == PROFILE}
    assert "hba1c" in unfilled
    assert "systolic_bp" not in unfilled


def test_before_the_first_intake_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(CohortError) as caught:
        coverage(tmp_path / "store")
    assert caught.value.code == "VHT-COHORT-EMPTY-STORE"


# --- the survey -------------------------------------------------------------------------------------------------------


def test_a_survey_counts_what_maps_read_and_names_it_to_the_operator_alone(store: Path) -> None:
    found = survey(store, CARDIO, PROFILE, excluded_subjects=set())
    features = {feature.name: feature for feature in found.features}
    assert (features["antihypertensive"].patients, features["diabetes"].patients) == (12, 12)
    assert features["antihypertensive"].mapped == {f"{RXNORM}|316049": ["medication"]}
    exact, passed = found.to_dict(CountDisclosure()), found.to_dict(CountDisclosure(10))
    assert "cvd_10y" in {port["port"] for port in exact["unfilled"]}
    assert passed["unfilled"] is None
    assert {feature["mapped"] is None for feature in passed["features"]} == {True}
    blind = survey(store, CARDIO, PROFILE, excluded_subjects=set(), maps=CodeMaps(()))
    assert {feature.name: feature.patients for feature in blind.features}["diabetes"] == 0


# --- at a node --------------------------------------------------------------------------------------------------------


@pytest.fixture
def node_state(tmp_path: Path) -> Iterator[Hospital]:
    hospital = make_hospital(tmp_path)
    yield hospital
    hospital.issuer.stop()


def test_an_intake_says_which_ports_its_data_can_never_fill(node_state: Hospital) -> None:
    report = vht_node("ingest", node_state.state, str(write_fhir(node_state.root / "fhir")))
    unfilled = {(port["component"], port["profile"], port["port"]) for port in report["unfilled"]}
    assert ("cardio-risk", PROFILE, "antihypertensive") in unfilled
    assert not {port for _, profile, port in unfilled if profile == PROFILE} & {"age", "systolic_bp", "cvd_10y"}
    more = write(node_state.root / "more", "m.ndjson", [takes("m", RXNORM, "316049", 1) | {"id": "m"}])
    report = vht_node("ingest", node_state.state, str(more))
    assert ("cardio-risk", PROFILE, "antihypertensive") not in {
        (port["component"], port["profile"], port["port"]) for port in report["unfilled"]
    }
    with node_state.open(start=False) as node:
        assert node.overview.ingests()[0]["unfilled"] == report["unfilled"]
    [entry] = [entry for entry in node_state.log() if entry["kind"] == "dataset.ingested"][:1]
    assert "unfilled" not in entry["body"], "the evidence log tells nobody"


def test_an_intake_is_an_intake_though_a_code_map_is_none(node_state: Hospital) -> None:
    (node_state.state / "code-maps").mkdir()
    (node_state.state / "code-maps" / "ours.csv").write_text("nonsense\n")
    report = vht_node("ingest", node_state.state, str(write_fhir(node_state.root / "fhir")))
    assert (report["accepted"], report["unfilled"]) == (90, None)
    with pytest.raises(InputError) as caught:
        vht_node("codes", "check", node_state.state)
    assert caught.value.code == "VHT-INPUT-CODE-MAP"


def test_the_command_shows_people_tables_and_programs_an_envelope(node_state: Hospital) -> None:
    vht_node("ingest", node_state.state, str(write(node_state.root / "in", "a.ndjson", ITEMS)))
    told = vht_node("codes", "check", node_state.state)
    assert [row["code"] for row in told["unknown"]] == ["316672", "J45.9", "asthma"]
    shown = CliRunner().invoke(app, ["node", "codes", "check", str(node_state.state)])
    assert shown.exit_code == 0
    for words in ("Mean nothing here", "316672", "fewer than 10 patients", "Never filled here", "medication"):
        assert words in shown.output
    assert "Zebedee" not in shown.output


def test_a_features_name_is_still_a_word_of_the_command() -> None:
    facts = json.loads(CliRunner().invoke(app, ["--json", "node", "codes", "hba1c"]).output)["data"]
    assert facts["name"] == "hba1c"
    listed = json.loads(CliRunner().invoke(app, ["--json", "node", "codes"]).output)["data"]["features"]
    assert facts["name"] in {feature["name"] for feature in listed}
