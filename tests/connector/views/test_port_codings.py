"""Data coded in other systems than a port names: read by the code maps, in cohorts and views alike, and said so."""

from pathlib import Path
from typing import Any

import pytest
from kit.fhir_resources import KEY, LOINC, SNOMED, condition, observation, patient, prescription, quantity, write
from safetensors.numpy import load_file

from connector.fhir import ingest
from connector.fhir.codes import CodeMaps, read_code_maps
from connector.views import CohortManifest, CohortSpecification, build_cohort
from connector.views.profile_views import derived_views, view_hash
from vht_federate.components.contract import Profile
from vht_federate.components.registry import find_component

COMPONENT = find_component("cardio-risk").component
PROFILE = "cardiometabolic"
INPUTS = COMPONENT.profile(PROFILE).inputs
GM, OLD_GM = "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "http://fhir.de/CodeSystem/dimdi/icd-10-gm"
WHO, CM = "http://hl7.org/fhir/sid/icd-10", "http://hl7.org/fhir/sid/icd-10-cm"
RXNORM, PZN = "http://www.nlm.nih.gov/research/umls/rxnorm", "http://fhir.de/CodeSystem/ifa/pzn"
LOCAL = "https://hospital.example/lab"
ONE_INPUT = {
    "title": "t",
    "inputs": ("diabetes",),
    "outcome": "cvd_10y",
    "landmarks": ("2010-01-01",),
    "horizon_years": 10,
}


def coded(resource: dict[str, Any], *codings: tuple[str, str]) -> dict[str, Any]:
    """``resource`` about these codings instead."""
    element = "medicationCodeableConcept" if resource["resourceType"] == "MedicationRequest" else "code"
    return resource | {element: {"coding": [{"system": system, "code": code} for system, code in codings]}}


ITEMS = [
    *(patient(number) for number in range(1, 9)),
    *(observation(f"o{number}", number) for number in range(1, 9)),
    coded(condition("gm", "-", "2001", 1), (GM, "E11.90")),
    coded(condition("old", "-", "2001", 2), (OLD_GM, "E11.9")),
    coded(condition("who", "-", "2001", 3), (WHO, "E11")),
    coded(condition("cm", "-", "2001", 4), (CM, "E11.65"), (SNOMED, "44054006")),  # one diagnosis, coded twice
    coded(condition("excluded", "-", "2001", 5), (GM, "E11.90A")),
    coded(condition("type 1", "-", "2001", 6), (GM, "E10.90")),
    coded(condition("infarct", "-", "2015-05-05", 7), (GM, "I21.4")),
    coded(condition("before", "-", "2005-05-05", 8), (GM, "I21.4")),
    coded(prescription("rx", "-", "2005", 1), (RXNORM, "316049")),
    coded(prescription("pzn", "-", "2005", 2), (PZN, "01126111")),
    coded(prescription("de", "-", "2005", 3), ("http://fhir.de/CodeSystem/bfarm/atc", "C09AA05")),
    coded(observation("lab", 1, valueQuantity=quantity(200, "mg/dL")), (LOCAL, "CHOL")),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coded")
    ingest(write(root / "in", "a.ndjson", ITEMS), root / "store", node_key=KEY, dataset="d")
    return root / "store"


def cohort(store: Path, maps: CodeMaps, profile: str = PROFILE, component: Any = COMPONENT) -> tuple[Any, Any]:
    folder = store.parent / "visits" / "v1" / "cohort"
    manifest = build_cohort(store, CohortSpecification.of_every_column(component, profile, maps=maps), folder)
    return manifest, load_file(folder / "cohort.safetensors")


def having(store: Path, maps: CodeMaps, name: str) -> int:
    """Patients with a value for ``name`` that is no "no"."""
    _, tensors = cohort(store, maps)
    values = tensors["values"][:, INPUTS.index(name)]
    return len({patient for patient, value in zip(tensors["patient"].tolist(), values, strict=True) if value > 0})


def test_diagnoses_in_any_of_the_systems_fill_a_port_that_names_snomed(store: Path) -> None:
    assert having(store, read_code_maps(), "diabetes") == 4
    assert having(store, CodeMaps(), "diabetes") == 1  # without maps, what the port names alone


def test_the_outcome_is_found_by_the_maps_too_and_so_is_whoever_had_it_before(store: Path) -> None:
    manifest, tensors = cohort(store, read_code_maps())
    assert manifest.patients == 7
    assert int(tensors["outcome"].max()) == 1
    blind, without = cohort(store, CodeMaps())
    assert (blind.patients, int(without["outcome"].max())) == (8, 0)


def test_medication_is_read_by_rxnorm_by_the_german_address_and_by_a_pharmacys_own_map(
    store: Path, tmp_path: Path
) -> None:
    assert having(store, read_code_maps(), "antihypertensive") == 2
    (tmp_path / "pharmacy.csv").write_text(
        f"system,code,means_system,means_code\n{PZN},01126111,http://www.whocc.no/atc,C07AB02\n"
    )
    assert having(store, read_code_maps(tmp_path), "antihypertensive") == 3


def test_a_laboratorys_own_codes_are_measured_through_its_map(store: Path, tmp_path: Path) -> None:
    assert having(store, read_code_maps(), "total_cholesterol") == 0
    (tmp_path / "lab.csv").write_text(f"system,code,means_system,means_code\n{LOCAL},CHOL,{LOINC},2093-3\n")
    assert having(store, read_code_maps(tmp_path), "total_cholesterol") == 1


def test_the_manifest_says_what_was_read_through_which_map(store: Path) -> None:
    maps = read_code_maps()
    manifest: CohortManifest = cohort(store, maps)[0]
    assert manifest.code_maps == maps.digests
    assert manifest.mapped_codes == {
        "antihypertensive": {
            f"{RXNORM}|316049": ["medication"],
            "http://fhir.de/CodeSystem/bfarm/atc|C09AA05": [],
        },
        "cvd_10y": {f"{GM}|I21.4": ["conditions"]},
        "diabetes": {
            f"{GM}|E11.90": ["conditions"],
            f"{OLD_GM}|E11.9": ["conditions"],
            f"{WHO}|E11": ["conditions"],
            f"{CM}|E11.65": ["conditions"],
        },
    }
    plain: CohortManifest = cohort(store, CodeMaps())[0]
    assert plain.code_maps == {}
    assert plain.mapped_codes == {"antihypertensive": {"http://fhir.de/CodeSystem/bfarm/atc|C09AA05": []}}
    assert len({plain.view_hash, manifest.view_hash, view_hash(list(derived_views(COMPONENT, PROFILE).values()))}) == 3


def test_a_port_that_names_a_category_of_icd_10_reads_all_below_it_and_its_equal_in_snomed(store: Path) -> None:
    port = COMPONENT.port("diabetes")
    german = port.model_copy(update={"source": port.source.model_copy(update={"system": OLD_GM, "codes": ("E11",)})})
    component = COMPONENT.model_copy(
        update={
            "ports": tuple(german if one is port else one for one in COMPONENT.ports),
            "profiles": {"p": Profile.model_validate(ONE_INPUT)},
        }
    )
    manifest, tensors = cohort(store, read_code_maps(), "p", component)
    assert int(tensors["values"].sum()) == 4
    assert manifest.mapped_codes["diabetes"][f"{GM}|E11.90"] == []
    assert manifest.mapped_codes["diabetes"][f"{SNOMED}|44054006"] == ["conditions"]


def test_a_panel_is_read_by_its_components_codes_whatever_codes_stand_beside(tmp_path: Path) -> None:
    """Blood pressure as a panel (85354-9), its components coded twice: one value each."""
    parts = [
        {
            "code": {"coding": [{"system": LOINC, "code": code}, {"system": SNOMED, "code": other}]},
            "valueQuantity": quantity(value, "mm[Hg]"),
        }
        for code, other, value in (("8480-6", "271649006", 150), ("8462-4", "271650006", 90))
    ]
    panel = coded(observation("panel", 1, component=parts), (LOINC, "85354-9"), (SNOMED, "75367002"))
    del panel["valueQuantity"]
    ingest(write(tmp_path / "in", "a.ndjson", [patient(1), panel]), tmp_path / "store", node_key=KEY, dataset="d")
    _, tensors = cohort(tmp_path / "store", read_code_maps())
    assert set(tensors["values"][:, INPUTS.index("systolic_bp")].tolist()) == {150.0}
