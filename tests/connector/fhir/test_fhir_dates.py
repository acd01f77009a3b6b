"""Dates and times of R4: the legal ones are read, a partial one keeps both its bounds, all others are refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.fhir_resources import KEY, condition, observation, patient, prescription, write

from connector.fhir import IngestReport, Store, ingest
from connector.fhir.dates_and_times import birth_date, instant, moment
from connector.fhir.rendering import resources
from connector.fhir.typed_elements import Quarantine


def take(root: Path, items: list[Any]) -> IngestReport:
    return ingest(write(root / "in", "data.ndjson", items), root / "store", node_key=KEY, dataset="d")


def rows(root: Path, table: str) -> list[dict[str, Any]]:
    generation = Store(root / "store").current()
    assert generation is not None
    return [row for part in generation.parts(table) for row in pq.read_table(part).to_pylist()]


def bounds(text: str) -> tuple[str, str | None]:
    found = moment({"at": text}, "at", "X")
    assert found is not None
    first, last = found
    return first.isoformat(), last.isoformat() if last else None


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2009", "2009-01-01T00:00:00+00:00", "2009-12-31T23:59:59.999999+00:00"),
        ("2009-02", "2009-02-01T00:00:00+00:00", "2009-02-28T23:59:59.999999+00:00"),
        ("2008-02", "2008-02-01T00:00:00+00:00", "2008-02-29T23:59:59.999999+00:00"),
        ("2009-02-03", "2009-02-03T00:00:00+00:00", None),
        ("2009-02-03T23:30:00-05:00", "2009-02-04T04:30:00+00:00", None),
        ("2009-02-03T23:30:00.25Z", "2009-02-03T23:30:00.250000+00:00", None),
    ],
)
def test_a_date_time_has_the_first_and_the_last_moment_that_it_may_mean(
    text: str, first: str, last: str | None
) -> None:
    assert bounds(text) == (first, last)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999+00:00"),
        ("2016-12-31T23:59:60.5Z", "2016-12-31T23:59:59.999999+00:00"),
        ("2017-01-01T08:59:60+09:00", "2016-12-31T23:59:59.999999+00:00"),
        ("2016-12-31T10:00:00+14:00", "2016-12-30T20:00:00+00:00"),
        ("2016-12-31T10:00:00-13:59", "2016-12-31T23:59:00+00:00"),
    ],
)
def test_a_leap_second_is_of_its_own_day_and_an_offset_is_at_most_fourteen_hours(text: str, read: str) -> None:
    assert bounds(text) == (read, None)
    at = instant({"at": text}, "at", "X")
    assert at is not None
    assert at.isoformat() == read


@pytest.mark.parametrize(
    "text",
    ["2020-01-01T10:00:00+15:00", "2020-01-01T10:00:00+14:01", "2020-01-01T10:00:00-14:30", "2020-01-01T10:00:61Z",
     "2020-01-01T24:00:00Z", "2020-01-01T10:60:00Z", "2020-01-01T10:00:00", "2020-02-30", "2020-13", "0000", "20", ""],
)  # fmt: skip
def test_what_is_no_date_of_r4_is_set_aside(text: str) -> None:
    with pytest.raises(Quarantine) as caught:
        moment({"at": text}, "at", "X")
    assert (caught.value.reason, caught.value.path) == ("format", "X.at")


@given(st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))
def test_whatever_a_partial_date_means_lies_between_its_bounds_and_the_next_one_does_not(at: datetime) -> None:
    for text in (f"{at:%Y}", f"{at:%Y-%m}"):
        found = moment({"at": text}, "at", "X")
        assert found is not None
        first, last = found
        assert last is not None
        assert first <= at <= last
        assert f"{last + timedelta(microseconds=1):%Y-%m}" != f"{last:%Y-%m}"


def test_a_partial_birth_date_is_its_middle_and_known_to_be_partial() -> None:
    read = {text: birth_date({"b": text}, "b", "X") for text in ("1950", "1950-07", "1950-07-01")}
    assert {text: (str(day), partial) for text, (day, partial) in read.items()} == {
        "1950": ("1950-07-01", True), "1950-07": ("1950-07-15", True), "1950-07-01": ("1950-07-01", False),
    }  # fmt: skip


def test_every_date_that_is_kept_has_both_bounds_in_the_store_and_is_rendered_as_it_came(tmp_path: Path) -> None:
    take(tmp_path, [
        patient(1, deceasedDateTime="2019-05", birthDate="1950"),
        observation("o", effectiveDateTime="2009"),
        condition("c", "44054006", "2010-03", recordedDate="2011", abatementDateTime="2012-04"),
        condition("d", "44054006", "2010-03", onsetDateTime=None, recordedDate="2011"),
        prescription("m", "C09AA05", "2013"),
        {"resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "AMB"},
         "subject": {"reference": "Patient/p1"}, "period": {"start": "2014", "end": "2014-02"}},
    ])  # fmt: skip
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    names = ("deceased_at", "effective", "onset", "recorded", "abated", "authored", "started", "ended")
    tables = ("patient", "observation", "condition", "medication_request", "encounter")
    found = [(name, row[name], row[f"{name}_until"]) for table in tables for row in rows(tmp_path, table)
             for name in names if row.get(name)]  # fmt: skip
    assert {name for name, *_ in found} == set(names)
    for _, first, last in found:
        assert (first.day, first.hour, last.hour, last.microsecond) == (1, 0, 23, 999_999)
    assert [row["birth_date_partial"] for row in rows(tmp_path, "patient")] == [True]
    [person], [encounter] = resources(generation, "Patient"), resources(generation, "Encounter")
    assert (person["deceasedDateTime"], person["birthDate"]) == ("2019-05", "1950-07-01")
    assert encounter["period"] == {"start": "2014", "end": "2014-02"}
    assert [item["effectiveDateTime"] for item in resources(generation, "Observation")] == ["2009"]
    assert [item["authoredOn"] for item in resources(generation, "MedicationRequest")] == ["2013"]
    ill = sorted((c["onsetDateTime"], c["recordedDate"], c.get("abatementDateTime"))
                 for c in resources(generation, "Condition"))  # fmt: skip
    assert ill == [("2010-03", "2011", "2012-04"), ("2011", "2011", None)]


def test_a_leap_second_is_kept_and_an_impossible_offset_is_not(tmp_path: Path) -> None:
    """Case ``times`` of the field."""
    report = take(tmp_path, [
        patient(1),
        observation("o1", effectiveDateTime="2016-12-31T23:59:60Z"),
        observation("o2", effectiveDateTime="2020-01-01T10:00:00+15:00"),
    ])  # fmt: skip
    assert (report.accepted, report.reasons) == (2, {"format": 1})
    assert [row["effective"].year for row in rows(tmp_path, "observation")] == [2016]
