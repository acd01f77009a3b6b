"""The privacy tests under every way in which this processor can add: ``make test-numerics``.

One pytest process for each setting. What the processor lacks is skipped, with the reason; a setting that was not in
force is a failure, not a pass.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
import torch

from kit.places import TESTS

__all__ = ["SETTINGS", "Setting", "in_force", "missing", "pytest_configure"]

PRIVACY_TESTS = TESTS / "privacy"
_CHOSEN = "VHT_TEST_ROUNDING"  # tells the pytest process which setting it must find in force


@dataclass(frozen=True)
class Setting:
    """``capability``: torch's own kernels, by ATEN_CPU_CAPABILITY; ``onednn``: whether torch may call oneDNN's."""

    name: str
    capability: str = ""
    onednn: bool = True

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"}
        return kept | {_CHOSEN: self.name} | ({"ATEN_CPU_CAPABILITY": self.capability} if self.capability else {})


SETTINGS = (
    Setting("default", "default"),
    Setting("avx2", "avx2"),
    Setting("avx512", "avx512"),
    Setting("onednn-off", onednn=False),
)


def missing(setting: Setting) -> str:
    """Why this machine cannot run ``setting``; empty: it can. Torch itself would take its word and crash."""
    if setting.capability == "avx2" and not torch.cpu._is_avx2_supported():
        return "the processor has no AVX2"
    if setting.capability == "avx512" and not torch.cpu._is_avx512_supported():
        return "the processor has no AVX-512"
    if not setting.onednn and not torch.backends.mkldnn.is_available():
        return "this torch is built without oneDNN"
    return ""


def in_force(setting: Setting) -> bool:
    """Whether this very process runs under ``setting``."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return capability == (setting.capability or capability) and bool(torch.backends.mkldnn.enabled) == setting.onednn


def pytest_configure(config: pytest.Config) -> None:
    """As a plugin (``-p kit.rounding_settings``): puts the chosen setting in force, or ends the run."""
    setting = next(candidate for candidate in SETTINGS if candidate.name == os.environ.get(_CHOSEN))
    torch.backends.mkldnn.enabled = setting.onednn  # torch has no environment variable for it
    if not in_force(setting):
        pytest.exit(f"{setting.name} is not in force", returncode=pytest.ExitCode.INTERNAL_ERROR)


def run(setting: Setting, arguments: list[str]) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "kit.rounding_settings", *arguments]
    return subprocess.run(command, env=setting.environment(), check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[setting.name for setting in SETTINGS])
    parser.add_argument("arguments", nargs="*", help="for pytest, after --; the privacy tests where none is given")
    options = parser.parse_args()
    lines, failed = [], False
    for setting in SETTINGS:
        if options.only not in (None, setting.name):
            continue
        reason, began = missing(setting), time.monotonic()
        if reason:
            lines.append(f"{setting.name:12} skipped: {reason}")
            continue
        print(f"--- {setting.name}", flush=True)
        code = run(setting, options.arguments or [str(PRIVACY_TESTS)])
        failed = failed or code != 0
        lines.append(f"{setting.name:12} {'FAILED' if code else 'passed'} in {time.monotonic() - began:.0f} s")
    print("\n--- rounding, by setting", *lines, sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
