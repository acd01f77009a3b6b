"""What holds for every test: no property fails because the machine was slow.

What lands is judged on the same examples each time; whoever runs the tests by hand meets new ones.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=os.environ.get("CI") == "true"
)
settings.load_profile("patient")
