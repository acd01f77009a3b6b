"""The operators of a local federation decide as people would: where nothing can be learned they say no, and not why."""

from pathlib import Path
from typing import Any

import pytest

from deploy.demo.studies import terms_for
from deploy.local_federation import LocalFederation
from vht_federate.errors import BudgetError, RefusedError, VhtError


class Refusing:
    """Commands, of which an approval ends with ``error``."""

    def __init__(self, error: VhtError | None) -> None:
        self.error = error
        self.given: list[tuple[str, ...]] = []

    def run(self, *words: str, **_: Any) -> dict[str, Any]:
        self.given.append(words)
        if self.error and "approve" in words and "--despite-outcome" not in words:
            raise self.error
        return {}


def decided(place: Path, error: VhtError | None) -> tuple[bool, list[str]]:
    commands = Refusing(error)
    federation = LocalFederation(place, [], terms_for(uci=False), commands)  # type: ignore[arg-type]
    answer = federation._decide("hospital-1", "v-1")
    assert all("--reason" not in words for words in commands.given)
    return answer, [words[1] for words in commands.given]


def test_a_visit_that_could_learn_nothing_is_rejected_without_a_reason(tmp_path: Path) -> None:
    error = RefusedError("nobody", code="VHT-REFUSED-OUTCOME")
    assert decided(tmp_path, error) == (False, ["approve", "reject"])


def test_a_visit_that_trains_is_approved_though_nobody_here_tests_it_alone(tmp_path: Path) -> None:
    error = RefusedError("nobody", code="VHT-REFUSED-EVALUATION")
    assert decided(tmp_path, error) == (True, ["approve", "approve"])


def test_a_visit_that_can_learn_is_approved(tmp_path: Path) -> None:
    assert decided(tmp_path, None) == (True, ["approve"])


def test_what_else_keeps_an_approval_from_happening_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        decided(tmp_path, BudgetError("too dear", code="VHT-BUDGET-CAP"))
