"""A setting that a test run claims is one that was in force."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from kit.places import ROOT
from kit.rounding_settings import SETTINGS, missing

PROBE = """
import torch
def test_prints():
    print("seen", torch.backends.cpu.get_cpu_capability(), torch.backends.mkldnn.enabled)
"""


def pytest_under(setting, folder: Path, **changed: str) -> subprocess.CompletedProcess:
    (folder / "test_probe.py").write_text(PROBE)
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT / 'tests'}\n")
    command = [sys.executable, "-m", "pytest", "-sq", "-p", "kit.rounding_settings", str(folder)]
    environment = setting.environment() | {"PYTHONPATH": str(ROOT / "tests")} | changed
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_each_setting_is_in_force_in_its_process(setting, tmp_path: Path) -> None:
    if missing(setting):
        pytest.skip(missing(setting))
    process = pytest_under(setting, tmp_path)
    assert process.returncode == 0, process.stdout
    assert re.search(rf"seen {setting.capability.upper() or '[A-Z0-9]+'} {setting.onednn}\n", process.stdout), (
        process.stdout
    )


def test_a_run_whose_setting_is_not_in_force_fails(tmp_path: Path) -> None:
    process = pytest_under(SETTINGS[1], tmp_path, ATEN_CPU_CAPABILITY="default")
    assert process.returncode != 0
    assert "avx2 is not in force" in process.stdout + process.stderr
