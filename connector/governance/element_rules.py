"""What of each element may be told: rules by resource type, and what each does to a value.

A value is made anew from parts that were checked, and never copied whole: what is not on the list is not there.
"""

import math
import re
from calendar import monthrange
from collections.abc import Callable, Collection, Mapping
from datetime import date, timedelta
from typing import Any, Protocol

from connector.fhir.disclosure_control import OLDEST_AGE
from connector.fhir.resources import ENCOUNTER_STATUS, GENDERS, OBSERVATION_STATUS, REQUEST_INTENT, REQUEST_STATUS
from connector.governance.public_codes import is_public, public_unit
from vht_federate.domain.references import encounter_id_of, patient_id_of
from vht_federate.domain.units import conversion

__all__ = ["RULES", "ElementRedaction", "earliest_day", "masked", "patient_of"]

Node = dict[str, Any]
_DATE = re.compile(r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2}))?)?")
_TIME = re.compile(
    r"(T(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60))(?:\.[0-9]+)?(Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])"
)
_LAST_INSTANT = ("T23:59:59Z", "T23:59:59+00:00", "T23:59:59-00:00")
_FULL = len("2020-12-31")
_UCUM = "http://unitsofmeasure.org"
_AGES = frozenset({("http://loinc.org", "30525-0")})
_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"


class PermitPseudonyms(Protocol):
    """What stands for patients and resources under one permit."""

    @property
    def codes(self) -> Collection[tuple[str, str]]: ...
    @property
    def now(self) -> date: ...
    def patient(self, subject: str) -> str: ...
    def identifier(self, resource_type: str, key: str) -> str: ...
    def shift(self, subject: str) -> timedelta: ...


def patient_of(reference: Any) -> str | None:
    """The key of the patient that a Reference names; None for any other reference."""
    target = reference.get("reference") if type(reference) is dict else None
    return patient_id_of(target) if type(target) is str else None


def masked() -> Node:
    """What stands where something was withheld (FHIR's data-absent-reason)."""
    return {"extension": [{"url": _ABSENT, "valueCode": "masked"}]}


def earliest_day(now: date) -> date:
    """The earliest day that is shown on ``now``: one before it lies 90 whole years back or more.

    It is compared with the day that is told, never with the true one: what vanishes on a day that the true date decides
    gives the shift away. Dates are told earlier than they are, so nobody is seen to be older than they are.
    """
    year, last = now.year - OLDEST_AGE, monthrange(now.year - OLDEST_AGE, now.month)[1]
    return date(year, now.month, min(now.day, last)) + timedelta(days=1)


def _read(value: Any) -> tuple[date, int, str] | None:
    """The middle of the days that a date or dateTime may mean, its characters, and its time, without a fraction of a
    second."""
    if type(value) is not str or not (match := _DATE.match(value)):
        return None
    rest = value[match.end() :]
    time = _TIME.fullmatch(rest) if rest and match[3] else None
    if rest and time is None:
        return None
    try:
        middle = date(int(match[1]), int(match[2] or 7), int(match[3] or (15 if match[2] else 1)))
    except ValueError:
        return None
    return middle, match.end(), time[1] + time[2] if time else ""


def _meant(last: date) -> date:
    """The middle of what may have been a year or a month that a store of an older make keeps by its last instant."""
    if (last.month, last.day) == (12, 31):
        return date(last.year, 7, 1)
    return last.replace(day=15) if last.day == monthrange(last.year, last.month)[1] else last


def _number(value: Any) -> float | None:
    usable = type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e12
    return value if usable else None


class ElementRedaction:
    """One resource, element by element. Every rule gives the value to tell, or None."""

    def __init__(self, pseudonyms: PermitPseudonyms, subject: str) -> None:
        self._pseudonyms, self._shift, self._subject = pseudonyms, pseudonyms.shift(subject), subject

    def members(self, node: Mapping[str, Any], rules: "Rules") -> Node:
        members: Node = {}
        for name, rule in rules.items():
            value = node.get(name)
            if value is not None and (deidentified := rule(self, value)) is not None:
                members[name] = deidentified
        return members

    def observed(self, node: Mapping[str, Any], rules: "Rules") -> Node:
        """An Observation or a component; an age is told in a unit of time, or not at all."""
        members = self.members(node, rules)
        codings = (self.concept(node.get("code")) or {}).get("coding", [])
        if any((coding["system"], coding["code"]) in _AGES for coding in codings):
            members.pop("valueInteger", None)
            unit = members.get("valueQuantity", {}).get("code")
            if unit is None or conversion(unit, "a") is None:
                members.pop("valueQuantity", None)
        return members

    def truth(self, value: Any) -> bool | None:
        return value if type(value) is bool else None

    def count(self, value: Any) -> int | None:
        return value if type(value) is int and abs(value) < 2**31 else None

    def moment(self, value: Any) -> str | None:
        """A date or dateTime, moved; a partial one by its middle, to the same precision; no fraction.

        At 23:59:59Z stores of an older make keep a partial date, too: to the second it would give the shift away, so
        the year alone is told. None for one that, as it would be told, may lie 90 years back or more: it
        would tell of a great age.
        """
        if (read := _read(value)) is None:
            return None
        middle, length, time = read
        return self._moved(_meant(middle), 4, "") if time in _LAST_INSTANT else self._moved(middle, length, time)

    def instant(self, value: Any) -> str | None:
        """An instant, which is never partial, moved; no fraction."""
        return self._moved(*read) if (read := _read(value)) and read[2] else None

    def day(self, value: Any) -> str | None:
        """A date without a time. The year alone of one that may be the middle that the store keeps of a partial date
        (``dates_and_times.birth_date``)."""
        if (read := _read(value)) is None or read[2]:
            return None
        middle, length, _ = read
        partial = length == _FULL and (middle.day == 15 or (middle.month, middle.day) == (7, 1))
        return self._moved(middle, 4 if partial else length, "")

    def _moved(self, middle: date, length: int, time: str) -> str | None:
        """``middle``, moved, to ``length`` characters. Whether it is shown is decided by these characters alone."""
        try:
            told = (middle - self._shift).isoformat()[:length]
        except OverflowError:
            return None
        first = date.fromisoformat(told + "-01-01"[length - _FULL :] if length < _FULL else told)
        return told + time if first >= earliest_day(self._pseudonyms.now) else None

    def period(self, value: Any) -> Node | None:
        return self.members(value, _PERIOD) or None if type(value) is dict else None

    def subject(self, value: Any) -> Node | None:
        return {"reference": f"Patient/{self._pseudonyms.patient(self._subject)}"} if patient_of(value) else None

    def encounter(self, value: Any) -> Node | None:
        target = value.get("reference") if type(value) is dict else None
        encounter_id = encounter_id_of(target) if type(target) is str else None
        return (
            {"reference": f"Encounter/{self._pseudonyms.identifier('Encounter', encounter_id)}"}
            if encounter_id
            else None
        )

    def coding(self, value: Any) -> Node | None:
        system, code = (value.get("system"), value.get("code")) if type(value) is dict else (None, None)
        if type(system) is not str or type(code) is not str or not is_public(system, code, self._pseudonyms.codes):
            return None
        return {"system": system, "code": code}

    def coding_or_masked(self, value: Any) -> Node:
        """For elements that FHIR requires."""
        return self.coding(value) or masked()

    def concept(self, value: Any) -> Node | None:
        codings = value.get("coding") if type(value) is dict else None
        public_codings = (
            [public for coding in codings if (public := self.coding(coding))] if type(codings) is list else []
        )
        return {"coding": public_codings} if public_codings else None

    def concept_or_masked(self, value: Any) -> Node:
        """For elements that FHIR requires."""
        return self.concept(value) or masked()

    def concepts(self, value: Any) -> list[Node] | None:
        return (
            ([public for concept in value if (public := self.concept(concept))] or None)
            if type(value) is list
            else None
        )

    def quantity(self, value: Any) -> Node | None:
        if type(value) is not dict or (amount := _number(value.get("value"))) is None:
            return None
        quantity: Node = {"value": amount}
        if (comparator := value.get("comparator")) is not None:
            if comparator not in ("<", "<=", ">=", ">"):
                return None
            quantity["comparator"] = comparator
        if (code := value.get("code")) is None:
            return quantity if value.get("unit") is None else None
        unit = public_unit(code) if type(code) is str and value.get("system") == _UCUM else None
        if unit is None:
            return None
        years = conversion(unit, "a")
        if years is not None and abs(years(amount)) >= OLDEST_AGE:
            quantity, unit = {"value": OLDEST_AGE}, "a"
        return quantity | {"unit": unit, "system": _UCUM, "code": unit}

    def components(self, value: Any) -> list[Node] | None:
        if type(value) is not list:
            return None
        components = [self.observed(component, _COMPONENT) for component in value if type(component) is dict]
        return [component for component in components if component] or None


Rule = Callable[[ElementRedaction, Any], Any]
Rules = Mapping[str, Rule]


def _one_of(allowed: frozenset[str]) -> Rule:
    return lambda _, value: value if type(value) is str and value in allowed else None


_T = ElementRedaction
_PERIOD: Rules = {"start": _T.moment, "end": _T.moment}
_ABOUT: Rules = {"subject": _T.subject, "encounter": _T.encounter}
_VALUE: Rules = {
    "valueQuantity": _T.quantity,
    "valueCodeableConcept": _T.concept,
    "valueBoolean": _T.truth,
    "valueInteger": _T.count,
    "valueDateTime": _T.moment,
    "valuePeriod": _T.period,
    "dataAbsentReason": _T.concept,
    "interpretation": _T.concepts,
}
_COMPONENT: Rules = {"code": _T.concept_or_masked, **_VALUE}
RULES: Mapping[str, Rules] = {
    "Patient": {
        "active": _T.truth,
        "gender": _one_of(GENDERS),
        "birthDate": _T.day,
        "deceasedBoolean": _T.truth,
        "deceasedDateTime": _T.moment,
    },
    "Observation": {
        "status": _one_of(OBSERVATION_STATUS),
        "category": _T.concepts,
        "code": _T.concept_or_masked,
        **_ABOUT,
        "effectiveDateTime": _T.moment,
        "effectiveInstant": _T.instant,
        "effectivePeriod": _T.period,
        "issued": _T.instant,
        **_VALUE,
        "component": _T.components,
    },
    "Condition": {
        "clinicalStatus": _T.concept,
        "verificationStatus": _T.concept,
        "category": _T.concepts,
        "code": _T.concept_or_masked,
        **_ABOUT,
        "onsetDateTime": _T.moment,
        "onsetPeriod": _T.period,
        "abatementDateTime": _T.moment,
        "abatementPeriod": _T.period,
        "recordedDate": _T.moment,
    },
    "MedicationRequest": {
        "status": _one_of(REQUEST_STATUS),
        "intent": _one_of(REQUEST_INTENT),
        "category": _T.concepts,
        "doNotPerform": _T.truth,
        "medicationCodeableConcept": _T.concept_or_masked,
        **_ABOUT,
        "authoredOn": _T.moment,
    },
    "Encounter": {
        "status": _one_of(ENCOUNTER_STATUS),
        "class": _T.coding_or_masked,
        "type": _T.concepts,
        "subject": _T.subject,
        "period": _T.period,
        "reasonCode": _T.concepts,
    },
}
