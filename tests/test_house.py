"""The house: import floors, what the base install brings, and what a control plane loads."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def _closure(name: str, extra: str = "") -> set[str]:
    """Every distribution that installing ``name[extra]`` brings, by the metadata of what is installed."""
    found: set[str] = set()
    todo = [(name, extra)]
    seen: set[tuple[str, str]] = set()
    while todo:
        package, wanted = todo.pop()
        if (package, wanted) in seen:
            continue
        seen.add((package, wanted))
        try:
            lines = requires(package) or []
        except PackageNotFoundError:
            continue
        for line in lines:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": wanted}):
                continue
            canonical = re.sub(r"[-_.]+", "-", requirement.name).lower()
            found.add(canonical)
            todo += [(canonical, one) for one in ("", *requirement.extras)]
    return found


def test_imports_run_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_base_install_resolves_without_torch_and_sdv() -> None:
    base = _closure("vht-federate")
    assert {"fastapi", "cryptography", "sqlalchemy"} <= base
    assert not base & {"torch", "sdv", "opacus", "mbi", "jax", "sdmetrics"}
    assert {"torch", "sdv"} <= _closure("vht-federate", "all")


@pytest.mark.parametrize("module", ["connector.app", "connector.cli", "strategies.courier", "vht_federate.cli"])
def test_a_control_plane_module_loads_neither_torch_nor_sdv(module: str) -> None:
    code = f"import {module}, sys; print(sorted({{'torch', 'sdv', 'jax', 'opacus'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("group", ["vht.commands", "vht.enclave_jobs", "vht.cohort_makers"])
def test_every_entry_point_loads(group: str) -> None:
    points = list(entry_points(group=group))
    assert points
    for point in points:
        assert callable(point.load())


def test_every_requirement_is_pinned_in_the_constraints_and_none_names_a_host() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert _closure("vht-federate", "all") - {"vht-federate"} <= pins | {"colorama", "tzdata", "setuptools"}
    assert not [line for line in lines if "://" in line or "--" in line]
    for package in ("flwr", "torch"):  # exactly, in both files
        assert f"{package}=={version(package)}" in lines
        assert f'"{package}=={version(package)}"' in (ROOT / "pyproject.toml").read_text()
