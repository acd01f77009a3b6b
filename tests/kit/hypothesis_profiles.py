"""How many examples a property is judged on: few and the same in CI, many and new ones where somebody asks for them.

``HYPOTHESIS_PROFILE=thorough pytest tests/privacy`` asks.
"""

import os

__all__ = ["PROFILE", "examples"]

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "patient")


def examples(usual: int, *, thorough: int) -> int:
    """For ``max_examples`` of a property whose examples are dear."""
    return thorough if PROFILE == "thorough" else usual
