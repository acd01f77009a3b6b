"""The guide, walked: its blocks are one script, run in an empty folder; what it promises is there afterwards."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kit.documented_commands import ROOT, blocks
from kit.shared_federation import Ran

from vht_federate.evidence.trust import TrustFile
from vht_federate.evidence.verify import verify_bundle
from vht_federate.packaging.load import load_component

pytestmark = [pytest.mark.federation, pytest.mark.slow("the first test waits for the walk of the whole guide")]

READER = ROOT / "docs" / "quickstart" / "data-scientist.md"
BIN = Path(sys.executable).parent


def test_the_evidence_of_the_guide_verifies_with_keys_from_outside(ran: Ran) -> None:
    walked = ran.guide.folder
    verification = verify_bundle(walked / "run" / "bundle", TrustFile.read(walked / "trust.json"))
    assert verification.run.completed
    assert verification.run.present() == ["hospital-1", "hospital-2"]
    assert set(verification.releases) == {"component", "cohort"}
    assert max(max(account.values()) for account in verification.epsilon.values()) <= verification.permit.epsilon
    assert (walked / "report.html").stat().st_size > 5000


def test_the_platform_of_the_guide_holds_both_releases(ran: Ran) -> None:
    result = json.loads((ran.guide.folder / "run" / "result.json").read_text())
    assert result["publication"]["component"].startswith("cardio-risk")
    assert "cohort" in result["publication"]["cohort"]


def test_the_component_of_the_guide_predicts(ran: Ran) -> None:
    component = load_component(ran.guide.folder / "run" / "release" / "cardio-risk")
    assert component.inputs[0] == "age"


def test_the_processes_that_hold_patients_records_in_the_guide_were_watched(ran: Ran) -> None:
    """So that the search for what is left after the guide's last section would see them."""
    assert len(ran.guide.family.seen("connector.enclave.worker")) >= 2


def test_what_the_data_scientist_s_page_does_works_on_the_bundle_of_the_guide(ran: Ran, tmp_path: Path) -> None:
    shutil.copytree(ran.bundle, tmp_path / "bundle")
    shutil.copy(ran.federation.trust, tmp_path)
    python = "\n".join(blocks(READER, "python"))
    completed = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    assert "mg/dL" in completed.stdout
    views = [line for block in blocks(READER) for line in block.splitlines() if line.startswith("vht view")]
    assert views
    for line in views:
        completed = subprocess.run([BIN / "vht", *line.split()[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert completed.returncode == 0, completed.stderr
