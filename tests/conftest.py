"""What holds for every test: no property fails because the machine was slow.

What lands is judged on the same examples each time; whoever runs the tests by hand meets new ones, and many more with
HYPOTHESIS_PROFILE=thorough.
"""

import os

from hypothesis import HealthCheck, settings
from thoroughness import PROFILE

settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=os.environ.get("CI") == "true"
)
settings.register_profile("thorough", settings.get_profile("patient"), max_examples=1000, derandomize=False)
settings.load_profile(PROFILE)
