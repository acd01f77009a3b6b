"""Hospitals with too few patients refuse properly, and the demo says so."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vht_federate.samples.generator import generate

pytestmark = [pytest.mark.faults, pytest.mark.slow("a demo, up to its refusal")]

VHT = str(Path(sys.executable).parent / "vht")


def test_a_demo_of_an_export_with_too_few_patients_ends_as_refused() -> None:
    with tempfile.TemporaryDirectory(prefix="vht-few-") as name:
        place = Path(name)  # a short path, for Unix sockets
        generate(place / "data", hospitals=1, patients=12, seed=5)
        export, out = place / "data" / "hospital-1", place / "o"
        ended = subprocess.run(
            [VHT, "--json", "demo", "--fhir", str(export), "--hospitals", "2", "--out", str(out)],
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        error = json.loads(ended.stdout.splitlines()[-1])["error"]
        assert (ended.returncode, error["code"]) == (3, "VHT-COHORT-NODES")
        assert error["message"].startswith("0 nodes are ready, at least 2 must be")
        assert "VHT-COHORT-SMALL" in error["message"]
        assert "takes no part" in ended.stderr
        run = json.loads((out / "run" / "run.json").read_text())
        assert (run["state"], run["rounds"]) == ("refused", [])
        assert not (out / "summary.json").exists()
