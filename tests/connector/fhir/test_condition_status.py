"""A Condition's status is what the bound system's coding says, wherever it stands; what is unknown is no diagnosis."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from kit.fhir_resources import KEY, SNOMED, condition, observation, patient, write
from kit.places import ROOT
from safetensors.numpy import load_file

from connector.fhir import IngestReport, Store, ingest
from connector.views import CohortSpecification, build_cohort
from vht_federate.components.contract import read_component

VERIFICATION = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
CLINICAL = "http://terminology.hl7.org/CodeSystem/condition-clinical"
CERTAINTY = "http://fhir.de/StructureDefinition/icd-10-gm-diagnosesicherheit"
COMPONENT = read_component(ROOT / "vht_federate" / "components" / "cardio_risk")
PROFILE = "cardiometabolic"


def coding(system: str | None, code: str) -> dict[str, str]:
    return {"code": code} | ({"system": system} if system else {})


def concept(*codings: dict[str, Any]) -> dict[str, Any]:
    return {"coding": list(codings)}


def take(tmp_path: Path, *conditions: dict[str, Any]) -> IngestReport:
    folder = write(tmp_path / "in", "x.ndjson", [patient(1), observation("o1", effectiveDateTime="2009"), *conditions])
    return ingest(folder, tmp_path / "store", node_key=KEY, dataset="d")


def stored(tmp_path: Path) -> list[tuple[str | None, str | None]]:
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    rows = [row for part in generation.parts("condition") for row in pq.read_table(part).to_pylist()]
    return [(row["verification"], row["clinical"]) for row in rows]


def verified(*codings: dict[str, Any], **more: Any) -> dict[str, Any]:
    return condition("c1", "44054006", "2008-01-01", verificationStatus=concept(*codings), **more)


def german(*letters: str, **more: Any) -> dict[str, Any]:
    icd = [
        {
            "system": "http://fhir.de/CodeSystem/bfarm/icd-10-gm",
            "code": "I21.9",
            "extension": [{"url": "urn:other"}, {"url": CERTAINTY, "valueCoding": {"code": letter}}],
        }
        for letter in letters
    ]
    snomed = coding(SNOMED, "22298006")
    return condition("c1", "22298006", "2010-06-01", **more) | {"code": {"coding": [snomed, *icd]}}


@pytest.mark.parametrize(
    ("codings", "verification"),
    [
        ([coding(VERIFICATION, "entered-in-error")], "entered-in-error"),
        ([coding(SNOMED, "723511001"), coding(VERIFICATION, "entered-in-error")], "entered-in-error"),
        ([coding(SNOMED, "410516002"), coding(VERIFICATION, "refuted")], "refuted"),
        ([coding("urn:local", "confirmed"), coding(VERIFICATION, "refuted")], "refuted"),
        ([coding(VERIFICATION, "confirmed"), coding(VERIFICATION, "refuted")], "refuted"),
        ([coding(SNOMED, "410605003"), coding(VERIFICATION, "provisional")], "provisional"),
        ([coding("http://hl7.org/fhir/condition-ver-status", "refuted")], "refuted"),
        ([coding(None, "refuted")], "refuted"),
        ([coding(SNOMED, "410516002")], "refuted"),
        ([coding(SNOMED, "723510000")], "entered-in-error"),
        ([coding(SNOMED, "415684004")], "provisional"),
        ([coding(SNOMED, "410605003")], "confirmed"),
        ([{"display": "no code"}], None),
    ],
)
def test_the_bound_system_decides_wherever_its_coding_stands(
    tmp_path: Path, codings: list[dict[str, str]], verification: str | None
) -> None:
    report = take(tmp_path, verified(*codings))
    assert stored(tmp_path) == [(verification, None)]
    assert report.entered_in_error == (verification == "entered-in-error")


@pytest.mark.parametrize(
    "status",
    [
        concept(coding("urn:local", "ruled-out")),  # another system alone
        concept(coding(SNOMED, "410593006")),  # probably not present: no word of R4 for that
        concept(coding(VERIFICATION, "maybe")),
        concept(coding(VERIFICATION, "confirmed"), coding(VERIFICATION, "maybe")),
        concept(coding(None, "ruled-out")),
        {"text": "ausgeschlossen"},
    ],
)
def test_a_status_in_unknown_words_never_becomes_a_diagnosis(tmp_path: Path, status: dict[str, Any]) -> None:
    report = take(tmp_path, condition("c1", "22298006", "2010-06-01", verificationStatus=status))
    assert report.reasons == {"code": 1}
    assert stored(tmp_path) == []


@pytest.mark.parametrize(
    ("codings", "clinical"),
    [
        ([coding(SNOMED, "55561003"), coding(CLINICAL, "resolved")], "resolved"),
        ([coding(SNOMED, "413322009")], "resolved"),
        ([coding(CLINICAL, "active"), coding(CLINICAL, "relapse")], "relapse"),
        ([coding(None, "inactive")], "inactive"),
    ],
)
def test_the_clinical_status_is_read_the_same_way(tmp_path: Path, codings: list[dict[str, str]], clinical: str) -> None:
    take(tmp_path, condition("c1", "22298006", "2010-06-01", clinicalStatus=concept(*codings)))
    assert stored(tmp_path) == [(None, clinical)]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (german("G"), ("confirmed", None)),
        (german("V"), ("provisional", None)),
        (german("A"), ("refuted", None)),
        (german("Z"), ("confirmed", "resolved")),
        (german("Z", clinicalStatus=concept(coding(CLINICAL, "remission"))), ("confirmed", "remission")),
        (german("A", verificationStatus=concept(coding(VERIFICATION, "confirmed"))), ("refuted", None)),
        (german("G", verificationStatus=concept(coding(VERIFICATION, "refuted"))), ("refuted", None)),
        (german("G", "A"), ("refuted", None)),
    ],
)
def test_a_german_certainty_counts_and_the_more_cautious_word_stands(
    tmp_path: Path, sent: dict[str, Any], expected: tuple[str | None, str | None]
) -> None:
    take(tmp_path, sent)
    assert set(stored(tmp_path)) == {expected}


def test_a_certainty_that_nobody_knows_is_set_aside(tmp_path: Path) -> None:
    report = take(tmp_path, german("X"))
    assert report.reasons == {"code": 1}


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        (condition("c1", "22298006", "2010-06-01"), True),
        (
            condition(
                "c1",
                "22298006",
                "2010-06-01",
                verificationStatus=concept(coding(SNOMED, "410516002"), coding(VERIFICATION, "refuted")),
            ),
            False,
        ),
        (german("G"), True),
        (german("A"), False),
    ],
)
def test_a_refuted_diagnosis_is_no_outcome(tmp_path: Path, sent: dict[str, Any], outcome: bool) -> None:
    take(tmp_path, sent)
    folder = tmp_path / "visits" / "v1" / "cohort"
    specification = CohortSpecification(COMPONENT, PROFILE, columns=COMPONENT.columns(PROFILE))
    build_cohort(tmp_path / "store", specification, folder)
    outcomes = load_file(folder / "cohort.safetensors")["outcome"]
    assert bool(outcomes.any()) is outcome
