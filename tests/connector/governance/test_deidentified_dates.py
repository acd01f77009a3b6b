"""Dates of one permit: shifted alike, never further known than they were, and nobody over 89."""

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from kit.deidentified import NOW, ONE, deidentify, encounter
from kit.fhir_resources import condition, observation, patient, quantity
from kit.hostile_table import Answered

from connector.governance import element_rules
from connector.governance.deidentification import Deidentifier
from connector.governance.element_rules import ElementRedaction, earliest_day


def moment(value: str) -> datetime:
    return datetime.fromisoformat(value)


def test_no_date_stays_where_it_was() -> None:
    drawn = [Deidentifier(bytes([n]) * 32, now=NOW).shift(f"p{k}").days for n in range(40) for k in range(100)]
    assert min(drawn) == 1
    assert max(drawn) == 365
    assert len(set(drawn)) == 365


@given(
    st.datetimes(datetime(1940, 1, 1), datetime(2026, 1, 1)),
    st.datetimes(datetime(1940, 1, 1), datetime(2026, 1, 1)),
    st.integers(1, 10**6),
    st.sampled_from(["Z", "+02:00", "-05:30", "+14:00"]),
)
def test_intervals_of_one_patient_are_kept_to_the_second(
    first: datetime, second: datetime, number: int, zone: str
) -> None:
    before = [f"{instant.replace(microsecond=0).isoformat()}{zone}" for instant in (first, second)]
    assume(not any(f"{moment(text).astimezone(UTC):%H%M%S}" == "235959" for text in before))  # told by their year
    observed = deidentify(observation("o1", number, effectiveDateTime=before[0]))
    onset = deidentify(condition("c1", "38341003", before[1], number))
    after = [observed["effectiveDateTime"], onset["onsetDateTime"]]
    assert moment(after[1]) - moment(after[0]) == moment(before[1]) - moment(before[0])
    assert timedelta(days=1) <= moment(before[0]) - moment(after[0]) <= timedelta(days=365)


def test_every_kind_of_date_moves_wherever_it_stands() -> None:
    stamp = "2009-05-06T08:00:00.123456789+02:00"
    deidentified = deidentify(
        observation(
            "o1",
            effectiveDateTime=None,
            effectivePeriod={"start": stamp, "note": stamp},
            issued=stamp,
            valueQuantity=None,
            valueDateTime="2009-05-06",
            component=[{"code": {"coding": []}, "valuePeriod": {"end": stamp}, "valueString": "2009-05-06"}],
            extension=[{"url": "u", "valueDate": "2009-05-06"}],
        )
    )
    assert "2009-05-06" not in json.dumps(deidentified)
    assert "123456789" not in json.dumps(deidentified)
    moved = date(2009, 5, 6) - ONE.shift("p1")
    assert deidentified["effectivePeriod"] == {"start": f"{moved}T08:00:00+02:00"}
    assert deidentified["component"][0]["valuePeriod"] == {"end": f"{moved}T08:00:00+02:00"}
    assert deidentified["valueDateTime"] == moved.isoformat()


@pytest.mark.parametrize(
    "value",
    [
        "yesterday",
        "2009-05-06T08:00:00",  # no zone: no FHIR dateTime
        "2009-02-30",
        "2009-13-01",
        "0001-01-01",
        "2009-05-06T25:00:00Z",
        "2009-05-06T08:00:00+99:00",
        "2009T08:00:00Z",
        "2009-05-06 Grace Hopper",
        "٢٠٠٩-05-06",
        "20090506",
        20090506,
        ["2009-05-06"],
    ],
)
def test_what_is_no_date_is_absent(value: Any) -> None:
    assert "effectiveDateTime" not in deidentify(observation("o1", effectiveDateTime=value))


def test_partial_dates_and_leap_days_move_within_their_precision() -> None:
    for number in range(200):
        moved = ONE.shift(f"p{number}")
        leap = deidentify(observation("o", number, effectiveDateTime="2008-02-29"))["effectiveDateTime"]
        assert date.fromisoformat(leap) == date(2008, 2, 29) - moved
        month = deidentify(observation("o", number, effectiveDateTime="2008-02"))["effectiveDateTime"]
        assert month == (date(2008, 2, 15) - moved).isoformat()[:7]
        year = deidentify(observation("o", number, effectiveDateTime="2008"))["effectiveDateTime"]
        assert year in ("2007", "2008")
        leap_second = deidentify(observation("o", number, effectiveDateTime="2008-12-31T23:59:60Z"))[
            "effectiveDateTime"
        ]
        assert leap_second.endswith("T23:59:60Z")


@pytest.mark.parametrize(
    ("kept", "meant"),
    [
        ("2020-12-31T23:59:59Z", date(2020, 7, 1)),  # 2020, or its December, or that second
        ("2020-12-31T23:59:59.5+00:00", date(2020, 7, 1)),
        ("2020-02-29T23:59:59Z", date(2020, 2, 15)),
        ("2021-02-28T23:59:59Z", date(2021, 2, 15)),
        ("2020-02-28T23:59:59Z", date(2020, 2, 28)),
    ],
)
def test_what_the_store_may_keep_of_a_partial_date_is_told_by_its_year(kept: str, meant: date) -> None:
    years = set()
    for number in range(100):
        at = deidentify(observation("o", number, effectiveDateTime=kept, issued=kept))
        moved = meant - ONE.shift(f"p{number}")
        assert at["effectiveDateTime"] == f"{moved.year}"
        assert at["issued"][10:] == f"T23:59:59{'Z' if kept.endswith('Z') else '+00:00'}"  # an instant is never partial
        years.add(at["effectiveDateTime"])
    assert len(years) == 2


@pytest.mark.parametrize(("born", "known"), [("1950-07-01", 4), ("1950-03-15", 4), ("1950-07-02", 10), ("1950-03", 7)])
def test_a_birth_date_in_the_middle_of_a_month_or_a_year_is_told_by_its_year(born: str, known: int) -> None:
    middle = date.fromisoformat(born if len(born) == 10 else f"{born}-15")
    assert deidentify(patient(birthDate=born))["birthDate"] == (middle - ONE.shift("p1")).isoformat()[:known]


def test_an_instant_without_a_time_is_absent() -> None:
    assert "issued" not in deidentify(observation("o1", issued="2009-05-06"))


# --- old age --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ("1937-02-02", True),  # 89
        ("1936-03-02", True),  # 90 tomorrow
        ("1936-03-01", False),  # 90 today
        ("1936-02-29", False),
        ("1935-06-01", False),
        ("1900-01-01", False),
    ],
)
def test_nobody_is_seen_to_be_over_89(told: str, known: bool) -> None:
    born = date.fromisoformat(told) + ONE.shift("p1")
    assert born.day != 15  # else the year alone is told
    deidentified = deidentify(patient(birthDate=born.isoformat()))
    assert deidentified.get("birthDate") == (told if known else None)
    assert ("_birthDate" in deidentified) is not known


@pytest.mark.parametrize(
    ("born", "known"), [("1935", False), ("1936", False), ("1938", True), ("1935-03", False), ("1938-03", True)]
)
def test_a_partial_date_is_hidden_while_what_is_told_of_it_may_lie_90_years_back(born: str, known: bool) -> None:
    assert ("birthDate" in deidentify(patient(birthDate=born))) is known


@pytest.mark.parametrize("born", ["", "unknown"])
def test_what_is_no_birth_date_is_masked(born: str) -> None:
    deidentified = deidentify(patient(birthDate=born))
    assert ("birthDate" in deidentified, "_birthDate" in deidentified) == (False, True)
    assert "_birthDate" not in deidentify({"resourceType": "Patient", "id": "p1"})


@dataclass(frozen=True)
class Shifted:
    """The permit's pseudonyms on one day, of a patient whose dates move by a chosen number of days."""

    now: date
    days: int
    codes: tuple[tuple[str, str], ...] = ()

    def patient(self, subject: str) -> str:
        return subject

    def identifier(self, resource_type: str, key: str) -> str:
        return f"{resource_type}/{key}"

    def shift(self, subject: str) -> timedelta:
        del subject
        return timedelta(days=self.days)


def shown(rule: str, value: str, days: int, now: date) -> str | None:
    redaction = ElementRedaction(Shifted(now, days), "p1")
    told: str | None = getattr(redaction, rule)(value)
    return told


FORMS = {  # rule, and how a true day is stored
    "birth date": ("day", "{day}"),
    "date": ("moment", "{day}"),
    "time": ("moment", "{day}T08:00:00Z"),
    "last second": ("moment", "{day}T23:59:59Z"),
    "instant": ("instant", "{day}T08:00:00Z"),
    "month": ("moment", "{day:.7}"),
    "year": ("moment", "{day:.4}"),
}


@pytest.mark.parametrize("form", FORMS)
@given(st.dates(date(1936, 1, 1), date(1937, 12, 31)), st.integers(1, 365), st.integers(1, 365), st.integers(-800, 800))
def test_the_day_on_which_a_date_vanishes_tells_nothing_of_its_shift(
    form: str, told: date, days: int, others: int, moved: int
) -> None:
    """Two patients of whom the same is told: whoever asks day by day sees both vanish on the same day."""
    rule, text = FORMS[form]
    now = date(2026, 9, 1) + timedelta(days=moved)
    first, second = (text.format(day=(told + timedelta(days=shift)).isoformat()) for shift in (days, others))
    before = date(2000, 1, 1)
    assume(shown(rule, first, days, before) == shown(rule, second, others, before))
    assert shown(rule, first, days, now) == shown(rule, second, others, now)


@pytest.mark.hostile("birthday")
def test_a_birth_date_vanishes_on_the_told_birthday_and_not_on_the_true_one(answered: Answered) -> None:
    told, days = date(1936, 8, 20), 200
    born = (told + timedelta(days=days)).isoformat()
    assert shown("day", born, days, date(2026, 8, 19)) == told.isoformat()
    assert [shown("day", born, days, date(2026, 8, 20) + timedelta(days=day)) for day in range(400)] == [None] * 400
    answered("the day of the told birthday")


@pytest.mark.hostile("birthday", control=True)
def test_control_where_the_true_date_decides_the_day_gives_the_shift_away(monkeypatch: pytest.MonkeyPatch) -> None:
    told, days = date(1936, 8, 20), 200
    born = told + timedelta(days=days)

    def by_true_date(now: date) -> date:
        return earliest_day(now - timedelta(days=days))  # what is told lies so many days before what is true

    monkeypatch.setattr(element_rules, "earliest_day", by_true_date)
    asked = [date(2026, 8, 20) + timedelta(days=day) for day in range(400)]
    vanished = next(day for day in asked if shown("day", born.isoformat(), days, day) is None)
    assert (vanished - date(2026, 8, 20)).days == pytest.approx(days, abs=1)


def test_on_a_leap_day_the_earliest_day_is_that_after_the_last_of_february() -> None:
    assert earliest_day(date(2028, 2, 29)) == date(1938, 3, 1)
    assert earliest_day(date(2026, 2, 28)) == date(1936, 2, 29)
    assert earliest_day(date(2026, 12, 31)) == date(1937, 1, 1)


def test_an_old_age_does_not_show_in_dates_or_durations_either() -> None:
    assert "onsetDateTime" not in deidentify(condition("c1", "38341003", "1935-05-05"))
    assert "period" not in deidentify(encounter(period={"start": "1930-05-05T08:00:00Z"}))
    age = {"coding": [{"system": "http://loinc.org", "code": "30525-0"}]}
    for amount, unit in ((94, "a"), (1130, "mo"), (4900, "wk"), (34_500, "d")):
        deidentified = deidentify(observation("o1", code=age, valueQuantity=quantity(amount, unit)))
        assert deidentified["valueQuantity"] == quantity(90, "a")
    assert deidentify(observation("o1", code=age, valueQuantity=quantity(89, "a")))["valueQuantity"]["value"] == 89
    assert deidentify(observation("o1", valueQuantity=quantity(94, "a")))["valueQuantity"]["value"] == 90
    for value in (
        {"valueInteger": 94},
        {"valueQuantity": quantity(94, "1")},
        {"valueQuantity": quantity(94, "{score}")},
    ):
        deidentified = deidentify(observation("o1", code=age) | {"valueQuantity": None} | value)
        assert not [name for name in deidentified if name.startswith("value")]
