"""The chain, from permit to evidence, on the shared federation."""

import json
import shutil
from pathlib import Path

import pytest
from kit.shared_federation import Ran

from vht_federate.client import Client
from vht_federate.errors import VerificationError

pytestmark = pytest.mark.federation


def test_the_run_completes_with_every_hospital(ran: Ran) -> None:
    assert ran.run["state"] == "completed"
    assert sorted(ran.run["participants"]) == [hospital.name for hospital in ran.federation.hospitals]
    assert ran.run["lost"] == {}


def test_every_hospitals_ledger_says_what_the_run_says(ran: Ran) -> None:
    claimed = ran.run["figures"]["epsilon_by_population"]
    assert 0 < ran.run["figures"]["epsilon"] <= ran.federation.terms.epsilon
    for budget in ran.federation.ledgers().values():
        (dataset,) = budget["datasets"].values()
        assert dataset["spent"] == pytest.approx(claimed, abs=1e-6)
        assert dataset["reserved"] == pytest.approx({"train": 0.0, "test": 0.0}, abs=1e-9)


def test_all_evidence_verifies_offline(ran: Ran) -> None:
    verified = ran.federation.commands.run("audit", "verify", str(ran.bundle), "--trust", str(ran.federation.trust))
    assert verified["permit_id"] == ran.permit_id
    assert len(verified["trace"]) > 20


def test_a_changed_byte_in_any_file_of_the_bundle_is_named(ran: Ran, tmp_path: Path) -> None:
    for path in sorted(file for file in ran.bundle.rglob("*") if file.is_file()):
        name = path.relative_to(ran.bundle)
        copy = tmp_path / "bundle"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(ran.bundle, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 0x01
        (copy / name).write_bytes(bytes(data))
        from vht_federate.evidence.verify import TrustFile, verify_bundle

        with pytest.raises(VerificationError) as caught:
            verify_bundle(copy, TrustFile.read(ran.federation.trust))
        assert str(name) in caught.value.message, name


def test_the_platform_lists_the_component_and_the_cohort(ran: Ran) -> None:
    with Client(ran.federation.url("platform"), ran.federation.ca) as client:
        components, cohorts = client.get("/api/components"), client.get("/api/cohorts")
    assert [item["name"] for item in components["components"]] == ["cardio-risk"]
    assert len(cohorts["cohorts"]) == 1


def test_the_released_component_predicts_in_clinical_units(ran: Ran) -> None:
    import numpy as np

    from vht_federate.packaging.load import load_component

    component = load_component(ran.bundle / "release" / "cardio-risk")
    ports = json.loads((ran.bundle / "release/cardio-risk/component.json").read_text())["inputs"]
    (oldest,) = (port["bounds"][1] for port in ports if port["name"] == "age")

    def record(age: float, pressure: float) -> list[float]:
        return [{"age": age, "systolic_bp": pressure}.get(port["name"], np.nan) for port in ports]

    patients = [record(35.0, 110.0), record(80.0, 180.0), record(oldest, 110.0), record(oldest + 50.0, 110.0)]
    young, old, at_the_bound, beyond = component.predict(np.array(patients, dtype=np.float32))
    assert 0 < young < 1
    assert 0 < old < 1
    assert young != old
    assert at_the_bound == beyond != young, "years are not what the component takes for age"
