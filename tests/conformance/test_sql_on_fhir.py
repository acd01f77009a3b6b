"""The shared test suite of SQL on FHIR v2: every case is a test, and the outcome is a report in the suite's form."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.places import SHARED

from connector.views import run
from vht_federate.errors import ViewError

SUITE = SHARED / "data" / "sql-on-fhir-tests"
REPORT: dict[str, Any] = {}


def _cases() -> list[Any]:
    cases = []
    for path in sorted(SUITE.glob("*.json")):
        file = json.loads(path.read_text())
        for case in file["tests"] if isinstance(file.get("tests"), list) else ():
            tags = ",".join(case.get("tags", ["untagged"]))
            cases.append(pytest.param(path.name, file["resources"], case, id=f"{path.stem}: {case['title']} ({tags})"))
    return cases


CASES = _cases()


@pytest.fixture(scope="module", autouse=True)
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``test_report.json``, in $VHT_OUT where that is set."""
    folder = Path(os.environ["VHT_OUT"]) if "VHT_OUT" in os.environ else tmp_path_factory.mktemp("conformance")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder / "test_report.json"
    if REPORT:
        (folder / "test_report.json").write_text(json.dumps(REPORT, indent=2) + "\n")


def test_the_suite_is_here_and_whole() -> None:
    if not SUITE.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"the conformance suite is missing: {SUITE}")
        pytest.skip("the conformance suite (../shared/data/sql-on-fhir-tests) is not on this machine")
    assert len(CASES) == 134
    assert sum("(shareable)" in case.id for case in CASES) == 123


def _comparable(rows: list[dict[str, Any]]) -> list[str]:
    """Rows in any order; 5 and 5.0 are one number."""

    def plain(value: Any) -> Any:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    return sorted(json.dumps({name: plain(value) for name, value in row.items()}, sort_keys=True) for row in rows)


def _check(resources: list[dict[str, Any]], case: dict[str, Any]) -> None:
    if case.get("expectError"):
        with pytest.raises(ViewError) as caught:
            run(case["view"], resources)
        assert caught.value.code.startswith("VHT-VIEW-")
        return
    rows = run(case["view"], resources)
    if "expectCount" in case:
        assert len(rows) == case["expectCount"]
    else:
        assert _comparable(rows) == _comparable(case["expect"])
    if "expectColumns" in case:
        assert list(rows[0]) == case["expectColumns"]


@pytest.mark.parametrize(("file", "resources", "case"), CASES)
def test_case(file: str, resources: list[dict[str, Any]], case: dict[str, Any]) -> None:
    result: dict[str, Any] = {"passed": False}
    REPORT.setdefault(file, {"tests": []})["tests"].append({"name": case["title"], "result": result})
    _check(resources, case)
    result["passed"] = True
