"""What holds for every test: no property fails because the machine was slow.

What lands is judged on the same examples each time; whoever runs the tests by hand meets new ones, and many more with
HYPOTHESIS_PROFILE=thorough. What a test leaves to torch's own generator is the same in whatever order tests run.
"""

import os
import sys

import pytest
from hypothesis import HealthCheck, settings
from thoroughness import PROFILE

settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=os.environ.get("CI") == "true"
)
settings.register_profile("thorough", settings.get_profile("patient"), max_examples=1000, derandomize=False)
settings.load_profile(PROFILE)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Only where the test's module has loaded torch: most never do."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
