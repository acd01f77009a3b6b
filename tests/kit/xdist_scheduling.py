"""How the tests are shared out among pytest-xdist's workers: by module, the longest first.

Tests of one module share what it builds once (a node, a store, a federation), so they stay in one worker. What starts
whole federations waits more than it computes: begun first, it overlaps with everything else. How to find out where
the time goes: ``docs/development/tests.md``.
"""

from collections.abc import Sequence

import pytest
from xdist.scheduler import LoadScopeScheduling

__all__ = ["ByModule", "group_of", "in_order"]

# One running federation for all of them (the fixture ``ran``).
SHARED_FEDERATION = frozenset(
    f"tests/federation/{name}.py" for name in ("test_by_hand_guide", "test_chain", "test_leaks", "test_refusals")
)
# Their tests share nothing that takes long to build.
ALONE = frozenset({"tests/faults/test_interrupt.py"})
LONGEST_FIRST = (
    "tests/faults/test_demo_acceptance.py",
    "tests/faults/test_lost_and_revoked.py",
    "tests/faults/test_export_demo.py",
    "tests/connector/pulls/test_fhir_hapi.py",
    "tests/strategies/test_small_federation.py",
    "tests/faults/test_interrupt.py",
    "shared federation",
    "tests/connector/governance/test_feasibility.py",
    "tests/connector/enclave/test_enclave.py",
)


def group_of(nodeid: str) -> str:
    """Tests of one group run in one worker, one after the other."""
    module = nodeid.partition("::")[0]
    if module in SHARED_FEDERATION:
        return "shared federation"
    return nodeid if module in ALONE else module


def in_order(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """``items`` with the longest groups first, else as they were."""
    place = {group: number for number, group in enumerate(LONGEST_FIRST)}

    def rank(item: pytest.Item) -> int:
        group = group_of(item.nodeid)
        return place.get(group, place.get(group.partition("::")[0], len(place)))

    return sorted(items, key=rank)


class ByModule(LoadScopeScheduling):  # type: ignore[misc]
    """pytest-xdist's own scheduler for groups, with ours."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
