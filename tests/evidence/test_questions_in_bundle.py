"""Bundles of a study whose permit also paid for feasibility questions: they hold, and count towards its ceiling."""

from pathlib import Path
from typing import Any

import pytest

from vht_federate.errors import VerificationError
from vht_federate.evidence.verify import verify_bundle
from vht_federate.privacy.statistics import Count
from vht_federate.testing.rehearsal import REHEARSED_PLAN, Rehearsal

PLAN = REHEARSED_PLAN.model_copy(update={"evaluation": None, "cohort": None})
NODE = "hospital-1"
DATASET = f"urn:vht:{NODE}:ehr"


def ask(
    rehearsal: Rehearsal, name: str, noise_multiplier: float = 40.0, *, answered: bool = True, visit: Any = None
) -> None:
    """One question at a node, outside of its visit."""
    permit, log = rehearsal.permit.permit_id, rehearsal.logs[NODE]
    event = Count(noise_multiplier).event("all").model_dump(mode="json")
    body = {"query": name, "label": "feasibility", "dataset": DATASET, "events": [event], "delta": PLAN.delta}
    log.append("query.drawn", body, permit_id=permit, visit=visit)
    if answered:
        log.append("feasibility.answered", {"query": name, "count": 40, "epsilon": 0.1}, permit_id=permit)


def played(root: Path, *questions: Any) -> Rehearsal:
    rehearsal = Rehearsal(root, names=(NODE, "hospital-2"), plan=PLAN)
    rehearsal.status("start")
    rehearsal.negotiate()
    rehearsal.round("train", 1, rehearsal.names)
    for question in questions:
        question(rehearsal)
    rehearsal.round("train", 2, rehearsal.names)
    rehearsal.release()
    rehearsal.close()
    rehearsal.status("end")
    return rehearsal


def test_a_bundle_holds_with_questions_among_its_rounds_and_its_page_tells_of_them(tmp_path: Path) -> None:
    with played(
        tmp_path, lambda rehearsal: ask(rehearsal, "q-1"), lambda rehearsal: ask(rehearsal, "q-2", answered=False)
    ) as rehearsal:
        report = verify_bundle(rehearsal.bundle(tmp_path / "bundle"), rehearsal.trust)
    assert [line.what for line in report.trace if "feasibility question" in line.what]


def test_questions_count_towards_the_permits_ceiling(tmp_path: Path) -> None:
    with played(tmp_path, lambda rehearsal: ask(rehearsal, "q-1", 1.2)) as rehearsal:
        with pytest.raises(VerificationError, match="the permit's ceiling") as caught:
            verify_bundle(rehearsal.bundle(tmp_path / "bundle"), rehearsal.trust)
        assert caught.value.code == "VHT-VERIFY-LEDGER"


def unpaid(rehearsal: Rehearsal, query: str) -> None:
    rehearsal.logs[NODE].append("feasibility.answered", {"query": query}, permit_id=rehearsal.permit.permit_id)


@pytest.mark.parametrize(
    ("questions", "words"),
    [
        ([lambda rehearsal: ask(rehearsal, "q-1", visit="visit-hospital-1")], "unknown kind|belongs to a visit"),
        ([lambda rehearsal: ask(rehearsal, "q-1"), lambda rehearsal: ask(rehearsal, "q-1")], "stands twice"),
        ([lambda rehearsal: unpaid(rehearsal, "q-0")], "follows no"),
        ([lambda rehearsal: ask(rehearsal, "q-1"), lambda rehearsal: unpaid(rehearsal, "q-1")], "follows no"),
    ],
)
def test_an_answer_that_was_not_paid_for_is_named(tmp_path: Path, questions: list[Any], words: str) -> None:
    with played(tmp_path, *questions) as rehearsal:
        with pytest.raises(VerificationError, match=words) as caught:
            verify_bundle(rehearsal.bundle(tmp_path / "bundle"), rehearsal.trust)
        assert caught.value.code == "VHT-VERIFY-ORDER"
