"""The installation: import floors, what the base install brings, and what a control plane loads."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path

import pytest
from kit.places import ROOT
from packaging.requirements import Requirement


def _closure(name: str, extra: str = "") -> set[str]:
    """Every distribution that installing ``name[extra]`` brings, by the metadata of what is installed."""
    distributions: set[str] = set()
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
            distributions.add(canonical)
            todo += [(canonical, extra_name) for extra_name in ("", *requirement.extras)]
    return distributions


def test_imports_run_one_way() -> None:
    completed = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stdout


def test_the_base_install_resolves_without_torch_and_sdv() -> None:
    base = _closure("vht-federate")
    assert {"fastapi", "cryptography", "sqlalchemy"} <= base
    assert not base & {"torch", "sdv", "opacus", "mbi", "jax", "sdmetrics"}
    assert {"torch", "sdv"} <= _closure("vht-federate", "all")


TRAINING = {"torch", "sdv", "sdmetrics", "pandas", "sklearn", "jax", "opacus"}
ACCOUNTING = {"scipy", "dp_accounting"}
UNITS = {"pint", "ucumvert", "lark"}
FLOWER = {"flwr", "grpc"}
SERVER = {"fastapi", "starlette", "uvicorn"}
DATABASE = {"sqlalchemy", "alembic"}
STORE = {"duckdb", "pyarrow"}
HEAVY = TRAINING | ACCOUNTING | UNITS | FLOWER | SERVER | DATABASE | STORE | {"numpy", "httpx", "rich"}


def _loaded(code: str, cwd: Path = ROOT) -> set[str]:
    """Which of the heavy packages a process has loaded when it has run ``code``."""
    report = f"import json, sys; print(json.dumps(sorted({HEAVY!r} & set(sys.modules))))"
    completed = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, cwd=cwd)
    assert completed.returncode == 0, completed.stderr
    return set(json.loads(completed.stdout.splitlines()[-1]))


# Modules that commands and processes start with, by what they may load; the rest is loaded by whoever uses it.
START_WITH: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "nothing heavy": (
        set(),
        (
            *("vht_federate.cli", "vht_federate.client", "connector.settings", "connector.cli.node", "strategies.cli"),
            *("strategies.coordinator", "deploy.cli", "vht_federate.authority.cli", "vht_federate.central.cli"),
            *("vht_federate.components.cli", "vht_federate.evidence.cli", "connector.enclave.host"),
            "connector.enclave.worker",  # before it is isolated
        ),
    ),
    "numpy": (
        {"numpy"},
        (
            *("vht_federate.privacy.cli", "vht_federate.samples.cli", "vht_federate.evidence.verify"),
            *("strategies.study", "connector.enclave.jobs"),
        ),
    ),
    "a database": ({"sqlalchemy"}, ("connector.provision", "vht_federate.authority.issue")),
    "a store": (STORE | {"numpy"}, ("connector.cli.view",)),
    "an open node": (STORE | {"sqlalchemy", "numpy"}, ("connector.node",)),
    "a serving node": (
        SERVER | STORE | {"sqlalchemy", "numpy", "httpx", "rich"},
        ("connector.listeners.internal", "connector.listeners.outward"),
    ),
    "a pull": (STORE | {"numpy", "httpx", "rich"}, ("connector.pulls.worker",)),
    "issuer and platform": (
        SERVER | {"sqlalchemy", "numpy"},
        ("vht_federate.authority.app", "vht_federate.central.app"),
    ),
    "a courier": (FLOWER | {"numpy", "httpx", "rich"}, ("strategies.courier",)),
}


@pytest.mark.parametrize("what", START_WITH)
def test_a_process_starts_without_what_others_need(what: str) -> None:
    allowed, modules = START_WITH[what]
    assert _loaded(f"import {', '.join(modules)}") <= allowed


@pytest.mark.parametrize(
    "arguments",
    [
        ("component", "list"),
        ("component", "show", "cardio-risk"),
        ("permit", "keygen", "."),
        ("pki", "ca", "--out", "."),
    ],
)
def test_a_command_with_json_loads_nothing_heavy(arguments: tuple[str, ...], tmp_path: Path) -> None:
    line = ["vht", "--json", *arguments]
    code = f"import sys; from vht_federate.cli import main; sys.argv = {line!r}\n"
    code += "try: main()\nexcept SystemExit as ended: assert not ended.code"
    assert not _loaded(code, tmp_path)


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
