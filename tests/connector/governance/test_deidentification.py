"""De-identification: nothing is told that was not listed, and nothing that links, dates or names a person."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.deidentified import NOW, ONE, OTHER, SECRET, deidentify, encounter, every_type, paths, placed
from kit.fhir_resources import KEY, condition, observation, patient, quantity, write
from kit.hypothesis_profiles import examples

from connector.fhir import Store, ingest
from connector.fhir.rendering import resources
from connector.fhir.resources import TABLES
from connector.governance.deidentification import Deidentifier
from connector.governance.public_codes import is_public, public_unit
from vht_federate.errors import InputError

# --- fail closed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", every_type(), ids=lambda resource: resource["resourceType"])
def test_a_modifier_extension_at_any_depth_withholds_the_resource(resource: dict[str, Any]) -> None:
    assert ONE.resource(resource) is not None
    places = list(paths(resource))
    assert places
    for at in places:
        assert ONE.resource(placed(resource, at, "modifierExtension", [{"url": "http://example.org/not"}])) is None
    hidden = {"resourceType": "Group", "member": [{"entity": {"modifierExtension": []}}]}
    assert ONE.resource(resource | {"contained": [hidden]}) is None
    assert ONE.resource(resource | {"_id": {"extension": [{"modifierExtension": [{"url": "u"}]}]}}) is None


@pytest.mark.parametrize(
    "resource",
    [
        {},
        {"resourceType": "Practitioner", "id": "x"},
        {"resourceType": ["Patient"], "id": "x"},
        {"resourceType": "Patient"},
        {"resourceType": "Patient", "id": "not an id"},
        {"resourceType": "Patient", "id": 5},
        patient(implicitRules="http://example.org/rules"),
        patient(link=[{"type": "replaced-by", "other": {"reference": "Patient/p2"}}]),
        observation("o1", subject={"display": SECRET}),
        observation("o1", subject={"reference": "Group/g1"}),
        observation("o1", subject={"reference": "#p1"}),
        observation("o1", subject={"identifier": {"value": SECRET}}),
        observation("o1", subject="Patient/p1"),
        {key: value for key, value in observation("o1").items() if key != "subject"},
    ],
    ids=lambda resource: json.dumps(resource)[:40],
)
def test_what_we_do_not_understand_is_not_told(resource: dict[str, Any]) -> None:
    assert ONE.resource(resource) is None


def test_a_key_is_32_bytes() -> None:
    with pytest.raises(InputError):
        Deidentifier(b"short", now=NOW)


# --- nothing but the list -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", every_type(), ids=lambda resource: resource["resourceType"])
def test_text_in_any_place_of_a_resource_is_not_told(resource: dict[str, Any]) -> None:
    elements = ("text", "display", "note", "name", "title", "comment", "extension", "contained", "identifier", "unit")
    for at in paths(resource):
        for name in elements:
            for value in (SECRET, [{"text": SECRET, "value": SECRET, "valueString": SECRET}], {"div": SECRET}):
                deidentified = ONE.resource(placed(resource, at, name, value))
                assert "Hopper" not in json.dumps(deidentified)
                assert "555" not in re.sub(r"[0-9a-f]{64}", "", json.dumps(deidentified))


@pytest.mark.parametrize("resource", every_type(), ids=lambda resource: resource["resourceType"])
def test_text_in_place_of_any_value_is_not_told(resource: dict[str, Any]) -> None:
    for at in paths(resource):
        inner: Any = resource
        for step in at:
            inner = inner[step]
        for name in inner:
            for value in (
                SECRET,
                [SECRET],
                {"text": SECRET},
                [[SECRET]],
                {"coding": [{"code": SECRET}]},
                5,
                None,
                True,
            ):
                assert "Hopper" not in json.dumps(ONE.resource(placed(resource, at, name, value)))


def test_names_addresses_and_contacts_are_absent() -> None:
    full = patient(
        name=[{"family": "Hopper", "given": ["Grace"]}],
        address=[{"city": "Arlington", "postalCode": "22201"}],
        telecom=[{"value": "555-0142"}],
        identifier=[{"value": "123-45-6789"}],
        maritalStatus={"text": "widowed"},
        photo=[{"data": "QUJD"}],
        contact=[{"name": {"family": "Murray"}}],
        generalPractitioner=[{"reference": "Practitioner/7"}],
        multipleBirthInteger=3,
        meta={"source": "http://hopper.example"},
    )
    assert set(deidentify(full)) == {"resourceType", "id", "gender", "birthDate"}


def test_codes_of_local_systems_and_malformed_codes_are_masked() -> None:
    local = {"system": "urn:hospital:codes", "code": "Grace-Hopper"}
    good = {"system": "http://loinc.org", "code": "8480-6", "display": SECRET, "userSelected": True}
    wrong = [
        {"system": "http://loinc.org", "code": "555-0142"},
        {"system": "http://loinc.org", "code": "8480-7"},
        {"system": "http://snomed.info/sct", "code": "5550142"},
        {"system": "http://terminology.hl7.org/CodeSystem/hopper", "code": "grace"},
        {"code": "8480-6"},
        {"system": "http://loinc.org"},
        {"system": ["http://loinc.org"], "code": {}},
        "8480-6",
    ]
    coded = deidentify(observation("o1", code={"coding": [local, good, *wrong], "text": SECRET}))
    assert coded["code"] == {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]}
    masked = deidentify(observation("o1", code={"coding": [local]}))["code"]
    assert masked["extension"][0]["valueCode"] == "masked"
    named = Deidentifier(b"1" * 32, now=NOW, codes=[("urn:hospital:codes", "Grace-Hopper")])
    assert deidentify(observation("o1", code={"coding": [local]}), named)["code"] == {"coding": [local]}


@pytest.mark.parametrize(
    ("system", "code"),
    [
        ("http://loinc.org", "8480-6"),
        ("http://loinc.org", "LA6576-8"),
        ("http://snomed.info/sct", "38341003"),
        ("http://snomed.info/sct", "428041000124106"),
        ("http://www.whocc.no/atc", "C09AA05"),
        ("http://www.nlm.nih.gov/research/umls/rxnorm", "314076"),
        ("http://terminology.hl7.org/CodeSystem/v3-ActCode", "AMB"),
    ],
)
def test_public_codes_pass(system: str, code: str) -> None:
    assert is_public(system, code)
    assert not is_public(system, code + "\n")
    assert not is_public(system + "/x", code)


def test_a_unit_may_not_speak() -> None:
    assert public_unit("mm[Hg]") == "mm[Hg]"
    assert public_unit("{score}") == "{score}"
    assert public_unit("mL/min/{1.73_m2}") == "mL/min/{1.73_m2}"
    assert public_unit("{Grace_Hopper}/min") == "1/min"
    assert public_unit("mg{Hopper}/dL") == "mg/dL"
    assert public_unit("mg/{Hopper}") == "mg/1"
    assert public_unit("{Hopper}") == "1"
    assert public_unit("mg/{555-0142}") is None
    assert public_unit("Grace") is None
    for unit in ({"unit": SECRET}, {"unit": SECRET, "system": "urn:x", "code": SECRET}, {"code": "mm[Hg]"}):
        assert "valueQuantity" not in deidentify(observation("o1", valueQuantity={"value": 1} | unit))
    kept = deidentify(observation("o1", valueQuantity=quantity(140, "mm[Hg]") | {"unit": SECRET}))
    assert kept["valueQuantity"]["unit"] == "mm[Hg]"


@pytest.mark.parametrize("amount", ["140", None, True, [140], {"value": 140}, float("nan"), float("inf"), 10**30])
def test_a_value_that_is_no_number_is_absent(amount: Any) -> None:
    assert "valueQuantity" not in deidentify(observation("o1", valueQuantity=quantity(amount, "mm[Hg]")))


# --- pseudonyms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    [
        "Patient/p1",
        "urn:uuid:p1",
        "https://fhir.hospital.example/r4/Patient/p1",
        "http://fhir.hospital.example/Patient/p1/_history/3",
    ],
)
def test_one_patient_is_one_pseudonym_however_they_are_referred_to(reference: str) -> None:
    subject = {"reference": reference, "display": SECRET, "type": "Patient"}
    assert deidentify(observation("o1", subject=subject))["subject"] == {
        "reference": f"Patient/{deidentify(patient())['id']}"
    }


def test_encounters_are_pseudonymous_where_they_are_referred_to() -> None:
    of = deidentify(observation("o1", encounter={"reference": "Encounter/e1", "display": SECRET}))["encounter"]
    assert of == {"reference": f"Encounter/{deidentify(encounter())['id']}"}
    assert "encounter" not in deidentify(observation("o1", encounter={"display": SECRET}))


def test_ids_of_one_spelling_do_not_link_types() -> None:
    same = [observation("p1"), condition("p1", "38341003", "2009-05-06"), encounter(id="p1"), patient()]
    assert len({deidentify(resource)["id"] for resource in same}) == 4
    assert ONE.identifier("Patient", "p1") == ONE.patient("p1")


def test_one_patient_under_two_permits_has_nothing_in_common() -> None:
    for first, second in zip(
        map(deidentify, every_type()), (deidentify(resource, OTHER) for resource in every_type()), strict=True
    ):
        keys = r"[0-9a-f]{64}"
        assert not set(re.findall(keys, json.dumps(first))) & set(re.findall(keys, json.dumps(second)))
    shifts = {(ONE.shift(f"p{n}"), OTHER.shift(f"p{n}")) for n in range(50)}
    assert sum(first == second for first, second in shifts) < 3
    assert ONE.resource(patient()) == Deidentifier(b"1" * 32, now=NOW).resource(patient())


# --- dates ----------------------------------------------------------------------------------------------------------


def test_the_stored_resources_pass_and_are_all_told(tmp_path: Any) -> None:
    lines = [
        *every_type(),
        observation("o2", encounter={"reference": "Encounter/e1"}, effectiveDateTime="2010-05-06T10:00:00Z"),
    ]
    ingest(write(tmp_path / "in", "all.ndjson", lines), tmp_path / "store", node_key=KEY, dataset="d")
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    stored = [resource for kind in TABLES for resource in resources(generation, kind)]
    assert len(stored) == len(lines)
    for resource in stored:
        deidentified = deidentify(resource)
        assert set(resource) - {"meta"} == set(deidentified)
        for key in re.findall(r"[0-9a-f]{32,64}", json.dumps(resource)):
            assert key not in json.dumps(deidentified)


ELEMENTS = (
    "id status code coding system subject reference encounter effectiveDateTime valueQuantity valueCodeableConcept "
    "component value unit comparator start end onsetPeriod period class type category birthDate gender deceasedBoolean "
    "valueInteger interpretation clinicalStatus authoredOn issued text display link contained"
)
NAMES = st.sampled_from(ELEMENTS.split())
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["2009-05-06", "Patient/p1", "Encounter/e1", "http://loinc.org", "8480-6", "mm[Hg]", "final", "<"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=25,
)
TOLD = re.compile(
    r"[0-9a-f]{64}|(?:Patient|Encounter)/[0-9a-f]{64}|[0-9]{4}(?:-[0-9]{2}){0,2}|[<>]=?|final|Patient|Observation|Condition|"
    r"MedicationRequest|Encounter|http://\S+|8480-6|mm\[Hg\]|masked"
)


def strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from strings(inner)


@settings(max_examples=examples(40, thorough=1000))
@given(st.sampled_from(sorted(TABLES)), st.dictionaries(NAMES, ANYTHING, max_size=8))
def test_whatever_comes_nothing_but_checked_strings_is_told(kind: str, elements: dict[str, Any]) -> None:
    known = {"subject": {"reference": "Patient/p1"}, "id": "p1"}
    for resource in ({"resourceType": kind} | elements, {"resourceType": kind} | elements | known):
        deidentified = ONE.resource(resource)
        assert all(TOLD.fullmatch(text) for text in strings(deidentified)), deidentified
