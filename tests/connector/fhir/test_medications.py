"""A prescription's code comes from its Medication: inside it, in its Bundle, elsewhere in the export, in the store."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from kit.fhir_resources import KEY, patient, prescription, write

from connector.fhir import IngestReport, Store, ingest
from connector.fhir.deletions import Deletions
from connector.fhir.medications import medication_codings
from connector.fhir.observation_values import Units
from connector.fhir.quarantine_explanation import explain
from connector.fhir.rendering import resources
from connector.fhir.typed_elements import Quarantine

ATC = "http://fhir.de/CodeSystem/bfarm/atc"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
Code = tuple[str | None, str | None]


def medication(ident: str = "a", *codes: str, **more: Any) -> dict[str, Any]:
    coding = [{"system": ATC, "code": code} for code in codes or ("C08CA01",)]
    return {"resourceType": "Medication", "id": ident, "code": {"coding": coding}} | more


def request(reference: str, ident: str = "m1", **more: Any) -> dict[str, Any]:
    plain = prescription(ident, "-", "2020-01-01", medicationReference={"reference": reference}, **more)
    del plain["medicationCodeableConcept"]
    return plain


def take(tmp_path: Path, *folders: dict[str, list[Any]], **more: Any) -> IngestReport:
    """Each folder as an intake of its own; the last one's report."""
    reports = []
    for files in folders:
        number = len(list(tmp_path.glob("in-*")))
        for name, items in files.items():
            write(tmp_path / f"in-{number}", name, items)
        reports.append(ingest(tmp_path / f"in-{number}", tmp_path / "store", node_key=KEY, dataset="d", **more))
    return reports[-1]


def codes(tmp_path: Path) -> list[Code]:
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    rows = [row for part in generation.parts("medication_request") for row in pq.read_table(part).to_pylist()]
    return [(row["system"], row["code"]) for row in rows]


def version(number: int) -> dict[str, Any]:
    return {"meta": {"versionId": str(number), "lastUpdated": f"2020-01-01T00:00:0{number}Z"}}


def test_a_contained_medication_gives_its_code(tmp_path: Path) -> None:
    inside = {"resourceType": "Medication", "id": "m", "code": {"coding": [{"system": RXNORM, "code": "314076"}]}}
    other = {"resourceType": "Organization", "id": "m"}
    report = take(tmp_path, {"x.ndjson": [patient(1), request("#m", contained=[other, inside])]})
    assert (report.accepted, report.reasons) == (2, {})
    assert codes(tmp_path) == [(RXNORM, "314076")]


@pytest.mark.parametrize("reference", ["Medication/a", "https://x.example/fhir/Medication/a", "urn:uuid:a"])
@pytest.mark.parametrize("names", [("a.ndjson", "b.ndjson"), ("b.ndjson", "a.ndjson")])
def test_a_medication_of_another_file_gives_its_codes_in_their_order(
    tmp_path: Path, reference: str, names: tuple[str, str]
) -> None:
    files = {names[0]: [medication("a", "C08CA01", "C08"), medication("z")], names[1]: [patient(1), request(reference)]}
    report = take(tmp_path, files)
    assert report.by_type == {"Medication": 2, "MedicationRequest": 1, "Patient": 1}
    assert codes(tmp_path) == [(ATC, "C08CA01"), (ATC, "C08")]


def test_a_medication_of_the_same_bundle_gives_its_code(tmp_path: Path) -> None:
    posted = {name: value for name, value in medication().items() if name != "id"}
    asked = request("urn:uuid:1111", subject={"reference": "urn:uuid:2222"})
    person = {"resourceType": "Patient", "gender": "female"}
    entries = [{"resource": asked}, {"fullUrl": "urn:uuid:1111", "resource": posted}]
    entries.append({"fullUrl": "urn:uuid:2222", "resource": person})
    (tmp_path / "in-0").mkdir()
    content = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    (tmp_path / "in-0" / "b.json").write_text(json.dumps(content))
    report = ingest(tmp_path / "in-0", tmp_path / "store", node_key=KEY, dataset="d")
    assert (report.accepted, report.reasons, report.dangling_references) == (3, {}, {})
    assert codes(tmp_path) == [(ATC, "C08CA01")]


def test_a_medication_that_the_store_holds_gives_its_code_and_one_that_nobody_has_is_unresolved(tmp_path: Path) -> None:
    report = take(tmp_path, {"x.ndjson": [patient(1), request("Medication/a")]})
    assert (report.accepted, report.reasons) == (1, {"unresolved": 1})
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    [entry] = generation.quarantine()
    assert (entry["line"], entry["path"]) == (2, "MedicationRequest.medicationReference")
    [explanation] = explain([entry], [tmp_path / "in-0"], Units())
    assert (explanation.source, explanation.type) == ("found", "MedicationRequest")
    report = take(tmp_path, {"x.ndjson": [medication()]}, {"x.ndjson": [request("Medication/a")]})
    assert (report.accepted, report.reasons) == (1, {})
    assert codes(tmp_path) == [(ATC, "C08CA01")]


def test_a_request_that_is_unresolved_takes_no_other_version_s_place(tmp_path: Path) -> None:
    old = prescription("m1", "C09AA05", "2020-01-01", **version(1))
    report = take(tmp_path, {"x.ndjson": [old]}, {"x.ndjson": [request("Medication/nowhere", **version(2))]})
    assert (report.accepted, report.replaced, report.reasons) == (0, 0, {"unresolved": 1})
    assert [code for _, code in codes(tmp_path)] == ["C09AA05"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_newer_version_of_a_medication_gives_its_code_to_what_is_held(tmp_path: Path, at_once: bool) -> None:
    first = [medication("a", "C08CA01", **version(1)), request("Medication/a"), patient(1)]
    others = [medication("b", "N02"), request("Medication/b", "m2"), prescription("m3", "C09AA05", "2020-01-01")]
    newer = [medication("a", "C09", "C09A", **version(2))]
    folders = [[*first, *others, *newer]] if at_once else [[*first, *others], newer]
    take(tmp_path, *({"x.ndjson": items} for items in folders))
    assert sorted(code or "" for _, code in codes(tmp_path)) == ["C09", "C09A", "C09AA05", "N02"]
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    concepts = [request["medicationCodeableConcept"] for request in resources(generation, "MedicationRequest")]
    assert {"coding": [{"system": ATC, "code": "C09"}, {"system": ATC, "code": "C09A"}]} in concepts


def test_a_medication_without_a_code_leaves_a_request_without_one_until_it_has(tmp_path: Path) -> None:
    nameless = medication("a", **version(1)) | {"code": {"text": "tablets"}}
    report = take(tmp_path, {"x.ndjson": [patient(1), request("Medication/a"), nameless]})
    assert (report.accepted, report.reasons, codes(tmp_path)) == (3, {}, [(None, None)])
    take(tmp_path, {"x.ndjson": [medication("a", **version(2))]})
    assert codes(tmp_path) == [(ATC, "C08CA01")]


def test_a_medication_that_was_deleted_gives_no_code_to_new_requests(tmp_path: Path) -> None:
    take(tmp_path, {"x.ndjson": [patient(1), medication("a", **version(1)), request("Medication/a")]})
    listed = {"request": {"method": "DELETE", "url": "Medication/a"}}
    write(tmp_path / "gone", "d.ndjson", [{"resourceType": "Bundle", "type": "transaction", "entry": [listed]}])
    deletions = Deletions((tmp_path / "gone" / "d.ndjson",), datetime(2021, 1, 1, tzinfo=UTC))
    report = take(tmp_path, {"x.ndjson": [request("Medication/a", "m2")]}, deletions=deletions)
    assert (report.deleted, report.reasons) == (1, {"unresolved": 1})
    assert codes(tmp_path) == [(ATC, "C08CA01")], "what was prescribed stays what it was"
    report = take(tmp_path, {"x.ndjson": [request("Medication/a")]})
    assert (report.duplicate, report.reasons) == (1, {})
    made_again = {"meta": {"lastUpdated": "2022-01-01T00:00:00Z"}}
    take(tmp_path, {"x.ndjson": [medication("a", "C09", **made_again)]})
    assert codes(tmp_path) == [(ATC, "C09")]


def ingredient(code: str, **more: Any) -> dict[str, Any]:
    return {"itemCodeableConcept": {"coding": [{"system": RXNORM, "code": code}]}} | more


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"code": {"coding": [{"code": "x"}]}, "ingredient": [ingredient("1")]}, [(None, "x")]),
        ({"ingredient": [ingredient("1")]}, [(RXNORM, "1")]),
        ({"code": {"text": "free"}, "ingredient": [ingredient("1")]}, [(RXNORM, "1")]),
        ({"ingredient": [ingredient("1", isActive=True), ingredient("2", isActive=False)]}, [(RXNORM, "1")]),
        ({"ingredient": [ingredient("1", isActive=True), ingredient("2")]}, [(RXNORM, "1")]),
        ({"ingredient": [ingredient("1"), ingredient("2")]}, []),  # neither of them is the medication
        ({"ingredient": [ingredient("1", isActive=False)]}, []),
        ({"ingredient": [{"itemReference": {"reference": "Substance/s"}}]}, []),
        ({"code": {"coding": [{"code": "x"}]}, "status": "entered-in-error"}, []),
        ({}, []),
    ],
)
def test_what_a_medication_is(sent: dict[str, Any], expected: list[Code]) -> None:
    assert medication_codings({"resourceType": "Medication", "id": "a"} | sent) == expected


def test_a_medication_of_an_unknown_status_is_set_aside() -> None:
    with pytest.raises(Quarantine, match="code"):
        medication_codings({"resourceType": "Medication", "status": "gone"})


def test_requests_of_a_store_that_never_followed_a_reference_stay_as_they_are(tmp_path: Path) -> None:
    take(
        tmp_path, {"x.ndjson": [patient(1), prescription("m1", "C09AA05", "2020-01-01"), medication("a", **version(1))]}
    )
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    for part in generation.parts("medication_request"):  # as it was written before
        pq.write_table(pq.read_table(part).drop_columns(["medication"]), part)
    take(tmp_path, {"x.ndjson": [medication("a", "N02", **version(2)), request("Medication/a", "m2")]})
    assert sorted(code or "" for _, code in codes(tmp_path)) == ["C09AA05", "N02"]
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    assert len(list(resources(generation, "MedicationRequest"))) == 2
