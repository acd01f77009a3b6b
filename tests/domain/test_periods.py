"""Ten years and six months are counted by the calendar, so that no leap year lengthens a permit."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vht_federate.domain.periods import months_after
from vht_federate.domain.permit import Permit

SECOND = timedelta(seconds=1)


def permit(start: datetime, end: datetime, **changes: Any) -> Permit:
    fields: dict[str, Any] = {
        "permit_id": "permit-1",
        "hdab": "HDAB",
        "application_ref": "a-1",
        "issued_at": start,
        "not_before": start,
        "expires_at": end,
        "categories": ["51.1.a"],
        "dataset_ids": ["urn:d:1"],
        "columns": ["age"],
        "purposes": ["53.1.e.ii"],
        "purpose_text": "x",
        "controller": "c",
        "data_users": [{"name": "u", "kind": "private", "kid": "k"}],
        "component_digests": ["ab" * 32],
        "epsilon": 3.0,
        "delta": 1e-5,
        "minimum_nodes": 2,
    }
    return Permit.model_validate({**fields, **changes})


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("start", "last"),
    [
        ("2026-01-01", "2036-01-01"),
        ("2028-02-28", "2038-02-28"),
        ("2028-02-29", "2038-02-28"),  # no such day: the last of its month
        ("2026-03-01", "2036-03-01"),
        ("2099-06-30", "2109-06-30"),  # 2100 is no leap year
    ],
)
def test_a_permit_may_end_ten_years_after_its_beginning_and_no_second_later(start: str, last: str) -> None:
    assert permit(day(start), day(last)).expires_at == day(last)
    with pytest.raises(ValidationError, match="ten years"):
        permit(day(start), day(last) + SECOND)


def test_a_permit_of_ten_years_and_eight_days_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"Article 68\(12\)"):
        permit(day("2026-01-01"), day("2036-01-09"))


def test_ten_years_are_ten_years_of_one_clock_whatever_zone_a_time_is_written_in() -> None:
    east = timezone(timedelta(hours=10))
    start = datetime(2028, 3, 1, 4, tzinfo=east)  # in UTC the 29th of February
    with pytest.raises(ValidationError, match="ten years"):
        permit(start, datetime(2038, 3, 1, 4, tzinfo=east) + SECOND)
    assert permit(start, day("2038-02-28") + timedelta(hours=18))


@pytest.mark.parametrize(("end", "days"), [("2027-08-31", 182), ("2027-03-01", 184), ("2027-09-01", 182)])
def test_data_are_kept_at_most_six_months_of_the_calendar_beyond_a_permit(end: str, days: int) -> None:
    assert permit(day("2027-01-01"), day(end), retention_days_after_expiry=days)
    with pytest.raises(ValidationError, match=r"six months|184"):
        permit(day("2027-01-01"), day(end), retention_days_after_expiry=days + 1)


def test_a_permit_at_the_end_of_the_calendar_is_refused_in_words() -> None:
    with pytest.raises(ValidationError, match="beyond the calendar"):
        permit(day("9995-01-01"), day("9999-12-31"))


@given(
    moment=st.datetimes(datetime(1900, 1, 1), datetime(2900, 1, 1)).map(lambda when: when.replace(tzinfo=UTC)),
    months=st.integers(0, 600),
)
def test_a_period_ends_on_the_same_day_or_on_the_last_of_a_shorter_month(moment: datetime, months: int) -> None:
    end = months_after(moment, months)
    assert (end.year * 12 + end.month) - (moment.year * 12 + moment.month) == months
    assert end.timetz() == moment.timetz()
    assert end.day == moment.day or (end.day < moment.day and (end + timedelta(days=1)).day == 1)
