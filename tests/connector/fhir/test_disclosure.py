"""What people outside see of counts and ages: tens, no small groups, nobody over 90."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.fhir_resources import KEY, observation, patient, write
from kit.places import ROOT
from safetensors.numpy import load_file

from connector.catalogue import catalogue
from connector.fhir import dataset_summary, ingest
from connector.fhir.disclosure_control import disclosable_count
from connector.settings import DatasetSettings, NodeSettings
from connector.views import CohortSpecification, build_cohort
from vht_federate.components.contract import read_component
from vht_federate.domain.law import DataCategory

COMPONENT = read_component(ROOT / "vht_federate" / "components" / "cardio_risk")


@given(st.integers(0, 10**7), st.integers(1, 1000))
def test_no_told_count_is_exact_or_below_the_smallest_cell(count: int, smallest: int) -> None:
    disclosed = disclosable_count(count, smallest)
    assert (disclosed is None) == (count < smallest)
    if disclosed is not None:
        assert disclosed >= smallest
        assert disclosed == smallest or disclosed % 10 == 0
        assert abs(disclosed - count) <= max(5, smallest - count)


def settings(smallest_cell: int) -> NodeSettings:
    anything = Path("unused")
    return NodeSettings(
        name="north",
        port=1,
        internal_port=2,
        certificate=anything,
        key=anything,
        ca=anything,
        issuer_url="https://issuer.example",
        dataset=DatasetSettings(id="d", categories=(DataCategory.EHR,)),
        smallest_cell=smallest_cell,
    )


@pytest.mark.parametrize(("smallest", "patients", "records"), [(10, "40", "50"), (30, "40", "40"), (40, None, None)])
def test_the_catalogue_heeds_the_node_s_smallest_cell(
    tmp_path: Path, smallest: int, patients: str | None, records: str | None
) -> None:
    lines = [*(patient(n) for n in range(36)), *(observation(f"o{n}") for n in range(12))]
    ingest(write(tmp_path / "in", "all.ndjson", lines), tmp_path / "store", node_key=KEY, dataset="d")
    node = settings(smallest)
    summary = dataset_summary(tmp_path / "store", smallest_cell=node.smallest_cell)
    [dataset] = catalogue(node, summary, modified=None)["dcat:dataset"]
    counts = {
        name: dataset.get(f"healthdcatap:numberOf{name}", {}).get("@value") for name in ("UniqueIndividuals", "Records")
    }
    assert counts == {"UniqueIndividuals": patients, "Records": records}


def test_a_cohort_knows_nobody_older_than_90(tmp_path: Path) -> None:
    born = {1: "1921-01-01", 2: "1919-12-31", 3: "1919-01-01", 4: "1901-05-05", 5: "1930-01-01"}
    lines = [patient(number, birthDate=day) for number, day in born.items()]
    ingest(
        write(tmp_path / "in", "all.ndjson", [*lines, observation("o1")]), tmp_path / "store", node_key=KEY, dataset="d"
    )
    folder = tmp_path / "visits" / "v1" / "cohort"
    specification = CohortSpecification.of_every_column(COMPONENT, "cardiometabolic")
    build_cohort(tmp_path / "store", specification, folder)
    tensors = load_file(folder / "cohort.safetensors")
    ages = tensors["values"][:, COMPONENT.profile("cardiometabolic").inputs.index("age")]
    grouped = sorted(sorted(ages[tensors["patient"] == person].tolist()) for person in np.unique(tensors["patient"]))
    # On 2010-01-01 and the same day of the next two years; "89" is known, and all that follows is 90.
    assert grouped == [[80.0, 81.0, 82.0], [89.0, 90.0, 90.0], [90.0] * 3, [90.0] * 3, [90.0] * 3]


def test_an_unknown_age_stays_unknown(tmp_path: Path) -> None:
    lines = [{key: value for key, value in patient(1).items() if key != "birthDate"}, observation("o1")]
    ingest(write(tmp_path / "in", "all.ndjson", lines), tmp_path / "store", node_key=KEY, dataset="d")
    folder = tmp_path / "visits" / "v1" / "cohort"
    columns = tuple(name for name in COMPONENT.columns("cardiometabolic") if name != "age")
    build_cohort(tmp_path / "store", CohortSpecification(COMPONENT, "cardiometabolic", columns), folder)
    tensors = load_file(folder / "cohort.safetensors")
    assert len(tensors["values"]) == 3
    assert np.isnan(tensors["values"][:, COMPONENT.profile("cardiometabolic").inputs.index("age")]).all()
