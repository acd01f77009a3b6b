"""What stands in the log is what its writer gave: whole, and nothing dropped."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.event_text import describe, digest_in
from vht_federate.evidence.events import EVENTS, BudgetReserved, CohortBuilt, PermitChecked, PermitRevokedSeen

DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_a_privacy_event_is_written_with_all_that_accounting_needs() -> None:
    """A default is spelled out: what was spent hangs on no later version's defaults."""
    event = PrivacyEvent(label="count", population="train", noise_multiplier=3.0)
    body = BudgetReserved(dataset="d", events=(event,), delta=1e-5, epsilon_if_spent={"train": 1.0}, caps={}).body()
    assert body["events"] == [event.model_dump(mode="json")]
    assert body["events"][0]["sampling_rate"] == body["events"][0]["steps"] == 1


def test_a_field_that_is_unknown_is_refused_to_its_writer_and_left_to_its_reader() -> None:
    with pytest.raises(ValidationError):
        PermitRevokedSeen(code="c", patient="p1")  # type: ignore[call-arg]
    assert PermitRevokedSeen.read({"code": "c", "later": 1}) == PermitRevokedSeen(code="c")


def test_what_was_not_given_is_not_written_and_null_is() -> None:
    assert PermitChecked(outcome="refused", permit_id=None, permit_sha256="ab").body() == {
        "outcome": "refused", "permit_id": None, "permit_sha256": "ab",
    }  # fmt: skip


def test_a_moment_keeps_its_spelling() -> None:
    body = CohortBuilt(columns=(), minimum_cohort_met=True, opt_outs_as_of=DAY).body()
    assert body["opt_outs_as_of"] == DAY.isoformat()
    assert CohortBuilt.read(body).opt_outs_as_of == DAY


def test_a_cohort_names_the_maps_it_was_read_by_and_one_of_before_names_none() -> None:
    maps = {"conditions": "ab" * 32, "pharmacy": "cd" * 32}
    body = CohortBuilt(columns=("age",), minimum_cohort_met=True, opt_outs_as_of=DAY, code_maps=maps).body()
    assert body["code_maps"] == maps
    entry = LogEntry(0, DAY.isoformat(), "hospital-1", "cohort.built", "p", "v", body, "")
    assert "by the maps conditions (abababab), pharmacy (cdcdcdcd)" in describe(entry)
    before = {name: value for name, value in body.items() if name != "code_maps"}
    assert CohortBuilt.read(before).code_maps == {}
    assert "maps" not in describe(LogEntry(0, DAY.isoformat(), "hospital-1", "cohort.built", "p", "v", before, ""))
    with pytest.raises(ValidationError):
        CohortBuilt.read(body | {"code_maps": {"pharmacy": "no digest"}})


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_a_garbled_body_is_refused_to_a_reader(event: Any) -> None:
    with pytest.raises(ValidationError):
        event.read(dict.fromkeys(event.model_fields, object()))


def test_a_digest_that_is_no_text_is_none() -> None:
    """A node signs what it likes; whoever shows its log shortens digests."""
    entry = LogEntry(0, DAY.isoformat(), "hospital-1", "round.refused", "p", "v", {"digest": 5}, "")
    assert digest_in(entry) is None
