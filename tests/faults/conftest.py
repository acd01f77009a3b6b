"""A federation that faults are done to: four small hospitals, three short studies."""

import re
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from kit.hospital_processes import ROUND_DEADLINE_S, bring_back
from kit.shared_federation import small_terms

from deploy.commands import Commands
from deploy.local_federation import Hospital, LocalFederation

COMPLAINT = re.compile("WARN|ERROR|Error|Failed|Traceback")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Generator[None, pytest.TestReport]:
    """A failed test shows what the federation's processes complained of: their logs are gone afterwards."""
    report = yield
    federation = getattr(item, "funcargs", {}).get("federation")
    if report.failed and isinstance(federation, LocalFederation):
        for log in sorted(federation.root.rglob("*.log")):
            lines = [line for line in log.read_text(errors="replace").splitlines() if COMPLAINT.search(line)]
            if lines:
                report.sections.append((str(log.relative_to(federation.root)), "\n".join(lines[-20:])))
    return report


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalFederation]:
    place = Path(tempfile.mkdtemp(prefix="vht-flt-"))
    with Commands(place / "commands.sh") as commands:
        commands.run(
            "data", "generate", "--hospitals", "4", "--patients", "120", "--seed", "3", "--out", str(place / "data")
        )
        folders = sorted(path for path in (place / "data").iterdir() if (path / "Patient.ndjson").exists())
        terms = small_terms(round_deadline_s=ROUND_DEADLINE_S, epsilon_cap=20.0)
        federation = LocalFederation(place, [Hospital(folder.name, folder) for folder in folders], terms, commands)
        federation.start()
        yield federation
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def federation(shared: LocalFederation) -> LocalFederation:
    """The shared federation with all four hospitals up, whatever the test before did to them."""
    for hospital in shared.hospitals:
        bring_back(shared, hospital.name)
    return shared
