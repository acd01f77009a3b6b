"""A federation that faults are done to: four small hospitals, three short studies."""

import re
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
import pytest
from family import await_that
from federation.conftest import small_terms

from deploy.commands import Commands
from deploy.local_federation import Hospital, LocalFederation
from vht_federate.processes import alive

ONLINE = "SuperNode ID:"  # what a SuperNode logs once the coordinator let it in
COMPLAINT = re.compile("WARN|ERROR|Error|Failed|Traceback")
ROUND_DEADLINE_S = 60.0  # the coordinator misses a dead hospital after that; an honest one that stalls has that long


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
        made = LocalFederation(place, [Hospital(folder.name, folder) for folder in folders], terms, commands)
        made.start()
        yield made
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def federation(shared: LocalFederation) -> LocalFederation:
    """The shared federation with all four hospitals up, whatever the test before did to them."""
    for hospital in shared.hospitals:
        bring_back(shared, hospital.name)
    return shared


def processes_of(federation: LocalFederation, name: str) -> list[psutil.Process]:
    """Connector, enclaves, SuperNode and executor of one hospital, the connector first."""
    top = psutil.Process(federation.services[name].pid)
    return [top, *top.children(recursive=True)]


def bring_back(federation: LocalFederation, name: str) -> None:
    """Start a hospital that was killed, and wait until the coordinator has let its SuperNode in again.

    What the coordinator says is not enough: it counts a dead SuperNode as online for up to a minute, and refuses its
    successor as long.
    """
    if alive(federation.services[name].pid):
        return
    log = federation.node_state(name) / "supernode.log"
    before = log.read_text().count(ONLINE)
    federation._serve(name, "node", "serve", str(federation.node_state(name)))
    federation._await_health(name)
    await_that(lambda: log.read_text().count(ONLINE) > before, 180, f"{name} is online again")
