"""What holds for every test: no property fails because the machine was slow, and whoever is slow says why.

What lands is judged on the same examples each time; whoever runs the tests by hand meets new ones, and many more with
HYPOTHESIS_PROFILE=thorough. What a test leaves to torch's own generator is the same in whatever order tests run.
"""

import os
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
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
    for item in items:
        for marker in item.iter_markers("slow"):
            item.user_properties.append(("slow", marker.args[0]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Names what took longer than ``SLOW_S`` (set-up included) and does not say why: information, never a failure."""
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
    """Only where the test's module has loaded torch: most never do."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
