"""What holds for every test: no property fails because the machine was slow, and whoever is slow says why.

What lands is judged on the same examples each time; whoever runs the tests by hand meets new ones, and many more with
HYPOTHESIS_PROFILE=thorough. What a test leaves to torch's own generator is the same in whatever order tests run.
"""

import os
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from kit.hostile_table import Answered, HostileTable
from kit.hypothesis_profiles import PROFILE
from kit.xdist_scheduling import ByModule, in_order

settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=os.environ.get("CI") == "true"
)
settings.register_profile("thorough", settings.get_profile("patient"), max_examples=1000, derandomize=False)
settings.load_profile(PROFILE)

SLOW_S = 30.0  # beyond that a test carries the marker ``slow`` with a reason


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByModule:
    """Used with ``-n``: see ``tests/kit/xdist_scheduling.py``."""
    config.option.loadscopereorder = False
    return ByModule(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = in_order(items)
    HostileTable.note(items)
    for item in items:
        for marker in item.iter_markers("slow"):
            item.user_properties.append(("slow", marker.args[0]))


@pytest.fixture
def answered(request: pytest.FixtureRequest) -> Answered:
    """Say what an attacker was answered: it stands in the table of ``make test-hostile``."""
    return lambda answer: request.node.user_properties.append(("answered", answer))


def _asked_for_hostile_tests(config: pytest.Config) -> bool:
    return config.option.markexpr == "hostile" and not hasattr(config, "workerinput")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """``make test-hostile`` fails where an attack is not proven, though no test failed."""
    if not _asked_for_hostile_tests(session.config):
        return
    table = HostileTable()
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for reports in reporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                table.add(report)
    whole = session.config.args == session.config.getini("testpaths")
    session.config.stash[_TABLE] = table, whole
    if whole and table.lacking() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_TABLE = pytest.StashKey[tuple[HostileTable, bool]]()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Names what took longer than ``SLOW_S`` (set-up included) and does not say why: information, never a failure."""
    if _TABLE in terminalreporter.config.stash:
        table, whole = terminalreporter.config.stash[_TABLE]
        table.write(terminalreporter, whole=whole)
    seconds: dict[str, float] = {}
    reasons: set[str] = set()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration
                reasons |= {report.nodeid for name, _ in report.user_properties if name == "slow"}
    unexplained = {nodeid: taken for nodeid, taken in seconds.items() if taken > SLOW_S and nodeid not in reasons}
    if unexplained:
        terminalreporter.section(f"slower than {SLOW_S:g} s without the marker 'slow'")
        for nodeid, taken in sorted(unexplained.items(), key=lambda entry: -entry[1]):
            terminalreporter.write_line(f"{taken:7.1f} s  {nodeid}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test begins with the same generator (where torch is loaded: most never do) and speaks to people."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
    if output := sys.modules.get("vht_federate.output"):
        output._json_mode.set(False)
