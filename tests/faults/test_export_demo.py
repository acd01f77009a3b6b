"""The guide to one's own export, walked on a real export cut down to two small hospitals: the whole chain."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from kit.places import ROOT, SHARED
from kit.summary_contract import check_report, read_summary

from vht_federate.domain.references import patient_id_of
from vht_federate.evidence.verify import TrustFile, verify_bundle
from vht_federate.samples.export import Export
from vht_federate.samples.split import hospital_of

pytestmark = [pytest.mark.faults, pytest.mark.slow("a whole demo of two hospitals")]

GUIDE = ROOT / "docs" / "guides" / "your-own-export.md"
GSD = SHARED / "data" / "gsd_r4_ndjson.tgz"
HOSPITALS, PATIENTS = 2, 60  # of each hospital: of 30, one has nobody with the outcome


def _cut(folder: Path) -> Path:
    """The first patients of each hospital with all that is theirs; Procedures too, which no node reads."""
    folder.mkdir(parents=True)
    chosen: dict[str, int] = {}
    lines = list(Export(GSD).lines())
    for line in lines:
        if line.file == "Patient.ndjson":
            patient = orjson.loads(line.content or b"")["id"]
            home = hospital_of(patient, HOSPITALS)
            if list(chosen.values()).count(home) < PATIENTS:
                chosen[patient] = home
    for line in lines:
        resource = orjson.loads(line.content or b"")
        owner = resource["id"] if line.file == "Patient.ndjson" else patient_id_of(resource["subject"]["reference"])
        if owner in chosen:
            with (folder / line.file).open("ab") as file:
                file.write((line.content or b"") + b"\n")
    return folder


@pytest.fixture(scope="module")
def walked() -> Iterator[Path]:
    """The folder in which a reader walked the guide to its end."""
    if not GSD.exists():
        assert os.environ.get("CI") != "true", "the sample export is missing beside the checkout"
        pytest.skip("the sample export (../shared/data) is not beside this checkout")
    with tempfile.TemporaryDirectory(prefix="vht-own-") as name:  # short: Unix sockets do not like pytest's
        folder = Path(name) / "own"
        _cut(folder / "export")
        _walk(folder)
        yield folder


def _walk(folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "\n".join(re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE))
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path, "HOSPITALS": str(HOSPITALS), "COLUMNS": "160"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    (folder / "said.txt").write_text(ended.stdout)


@pytest.fixture(scope="module")
def summary(walked: Path) -> dict[str, Any]:
    return read_summary(walked / "demo")


def test_the_study_of_the_export_completes_at_both_hospitals(summary: dict[str, Any]) -> None:
    assert (summary["state"], summary["study_id"]) == ("completed", "hypertension-risk-export")
    assert sorted(summary["participants"]) == ["hospital-1", "hospital-2"]
    assert 0 < summary["epsilon"] <= 3.0
    for account in summary["ledger"].values():
        assert account["spent"] == pytest.approx(summary["epsilon"], abs=1e-6)
        assert account["spent_by_population"] == pytest.approx(summary["epsilon_by_population"], abs=1e-6)


def test_the_report_of_the_export_is_one_file_that_fetches_nothing(summary: dict[str, Any], walked: Path) -> None:
    check_report((walked / "demo" / "report.html").read_text())


def test_every_line_of_the_export_is_at_a_hospital_or_accounted_for(summary: dict[str, Any], walked: Path) -> None:
    described = json.loads((walked / "demo" / "data" / "dataset.json").read_text())
    lines = sum(len(path.read_bytes().splitlines()) for path in (walked / "export").iterdir())
    kept = sum(sum(hospital["resources"].values()) for hospital in described["hospitals"])
    assert [hospital["patients"] for hospital in described["hospitals"]] == [PATIENTS, PATIENTS]
    assert described == json.loads((walked / "hospitals" / "dataset.json").read_text())
    assert described["arguments"]["lines"] == lines == kept + described["arguments"]["unread"]["Procedure"]


def test_the_harness_says_what_one_input_alone_would_have_done(summary: dict[str, Any]) -> None:
    truth = summary["harness"]
    assert 0 < truth["patients_with_outcome"] < truth["patients"] < HOSPITALS * PATIENTS
    assert truth["patients"] == summary["patients"]
    assert truth["test_patients"] < truth["patients"]
    assert {"auc_federated", "auc_pooled_nonprivate", "auc_local_mean", "auc_single_input"} <= set(truth)


def test_all_evidence_of_the_export_verifies_again(summary: dict[str, Any], walked: Path) -> None:
    verified = verify_bundle(walked / "demo" / "run" / "bundle", TrustFile.read(walked / "demo" / "trust.json"))
    assert verified.permit.permit_id == summary["permit_id"]
    assert sum(verified.entries.values()) > 20


def test_a_person_reads_that_one_input_alone_would_do(walked: Path) -> None:
    transcript = (walked / "said.txt").read_text()
    for words in ("the number of missing inputs alone", "pooled data, without privacy", "log entries verified offline"):
        assert words in transcript


def test_the_release_is_the_component_with_the_model_that_it_borrows(summary: dict[str, Any], walked: Path) -> None:
    package = walked / "demo" / "run" / "bundle" / "release" / "hypertension-risk"
    assert (package / "code" / "generalised_linear.py").exists()
    assert json.loads((package / "component.json").read_text())["profile"] == "before-onset"
    assert "Age may do all the work" in (package / "model_card.md").read_text()
