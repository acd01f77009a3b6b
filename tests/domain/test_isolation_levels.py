"""Levels of isolation are ordered by strength, and what nobody knows counts as the weakest."""

import itertools

import pytest

from vht_federate.domain.isolation import IsolationLevel

SANDBOX, SYSTEM_CALLS, AUDIT_HOOK = IsolationLevel


def test_a_level_covers_itself_and_what_is_weaker() -> None:
    for (place, level), (other_place, other) in itertools.product(enumerate(IsolationLevel), repeat=2):
        assert level.covers(other) == (place <= other_place)
    assert SANDBOX.covers(AUDIT_HOOK)
    assert not AUDIT_HOOK.covers(SANDBOX)


def test_the_strictest_demand_counts() -> None:
    assert IsolationLevel.strictest(AUDIT_HOOK, None, SANDBOX) is SANDBOX
    assert IsolationLevel.strictest(SYSTEM_CALLS, AUDIT_HOOK) is SYSTEM_CALLS
    assert IsolationLevel.strictest(AUDIT_HOOK, None) is AUDIT_HOOK


@pytest.mark.parametrize("word", [None, "", "none", "network-namespace+audit-hook", "SANDBOX", "sandbox "])
def test_a_word_that_is_no_level_is_the_weakest(word: str | None) -> None:
    assert IsolationLevel.named(word) is AUDIT_HOOK


def test_a_level_is_known_by_its_word() -> None:
    for level in IsolationLevel:
        assert IsolationLevel.named(level.value) is level
