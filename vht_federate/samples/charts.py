"""A patient's chart as FHIR R4 resources (JSON objects), written the way one hospital writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

from vht_federate.domain.units import conversion
from vht_federate.samples.hospitals import Habits
from vht_federate.samples.identities import Identity, Registrar

__all__ = ["Chart", "Resource", "coded", "quantity"]

Resource = dict[str, Any]
LOINC, SNOMED, ATC, UCUM = (
    "http://loinc.org",
    "http://snomed.info/sct",
    "http://www.whocc.no/atc",
    "http://unitsofmeasure.org",
)
CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
CHOLESTEROL_MOLAR_MASS = 386.65

DRUGS = (
    ("C09AA05", "ramipril", "5 mg"),
    ("C08CA01", "amlodipine", "5 mg"),
    ("C03AA03", "hydrochlorothiazide", "25 mg"),
    ("C07AB02", "metoprolol", "50 mg"),
)
CONDITIONS = {
    "diabetes": ("44054006", "Diabetes mellitus type 2"),
    "hypertension": ("38341003", "Hypertensive disorder"),
    "infarction": ("22298006", "Myocardial infarction"),
    "stroke": ("230690007", "Cerebrovascular accident"),
}
SMOKING = {
    1: (("77176002", "Smoker"), ("449868002", "Smokes tobacco daily")),
    0: (("8517006", "Ex-smoker"),) * 2,
    -1: (("266919005", "Never smoked tobacco"), ("8392000", "Non-smoker")),
}


@cache
def _iso(day: int) -> str:
    return date.fromordinal(day).isoformat()


def coded(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": display}], "text": display}


def quantity(value: float, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "system": UCUM, "code": unit}


def _turned(value: float, unit: str, to: str, *, loinc: str | None = None, molar_mass: float | None = None) -> float:
    way = conversion(unit, to, loinc=loinc, molar_mass=molar_mass)
    assert way is not None
    return way(value)


@dataclass
class Chart:
    """Builds one patient's resources in order; ids count up within the chart."""

    habits: Habits
    registrar: Registrar
    person: Identity

    def __post_init__(self) -> None:
        self._count = 0
        self._subject = {
            "reference": f"Patient/{self.person.id}",
            "display": f"{self.person.given} {self.person.family}",
        }

    def _id(self, kind: str) -> str:
        self._count += 1
        return f"{self.person.id}-{kind}{self._count}"

    def patient(self, *, born: int, male: bool, died: int) -> Resource:
        person = self.person
        name = f"{person.given} {person.family}"
        patient: Resource = {
            "resourceType": "Patient",
            "id": person.id,
            "text": {
                "status": "generated",
                "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{name}, {person.street}, {person.city}</div>',
            },
            "identifier": [{"use": "official", "system": "urn:oid:2.999.1.1", "value": person.identifier}],
            "active": True,
            "name": [{"use": "official", "family": person.family, "given": [person.given]}],
            "telecom": [{"system": "phone", "value": person.phone}, {"system": "email", "value": person.email}],
            "gender": "male" if male else "female",
            "birthDate": _iso(born),
            "address": [{"line": [person.street], "city": person.city, "postalCode": person.postcode}],
        }
        if died:
            patient["deceasedDateTime"] = _iso(died)
        return patient

    def encounter(self, day: int, minute: int, *, unusual: bool) -> Resource:
        fraction = f".{self.person.unusual_fraction}" if unusual else ""
        start = f"{_iso(day)}T08:{minute:02d}:{self.person.number % 60:02d}{fraction}+01:00"
        if unusual:
            self.registrar.plant(start)
        return {
            "resourceType": "Encounter",
            "id": self._id("e"),
            "status": "finished",
            "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
            "subject": self._subject,
            "period": {"start": start, "end": f"{_iso(day)}T09:{minute:02d}:00+01:00"},
            "reasonCode": [{"text": self.person.note}],
        }

    def measurements(self, day: int, minute: int, values: dict[str, float]) -> Iterator[Resource]:
        """Observations of one visit; a name absent from ``values`` was not measured."""
        moment = f"{_iso(day)}T08:{minute:02d}:30+01:00"
        if "systolic_bp" in values:
            yield from self._pressure(moment, round(values["systolic_bp"]), round(values["diastolic_bp"]))
        if "body_mass_index" in values:
            bmi = quantity(round(values["body_mass_index"], 1), "kg/m2")
            yield self._observation(moment, "39156-5", "Body mass index", "vital-signs", bmi)
        for name, codes, title in (
            ("total_cholesterol", ("2093-3", "14647-2"), "Cholesterol in serum or plasma"),
            ("hdl_cholesterol", ("2085-9", "14646-4"), "Cholesterol in HDL in serum or plasma"),
        ):
            if name in values:
                yield self._observation(
                    moment, codes[self.habits.molar_codes], title, "laboratory", self._cholesterol(values[name])
                )
        if "hba1c" in values:
            code = "59261-8" if self.habits.hba1c_ifcc and self.habits.molar_codes else "4548-4"
            yield self._observation(moment, code, "Hemoglobin A1c in blood", "laboratory", self._hba1c(values["hba1c"]))
        if "egfr" in values:
            egfr = quantity(round(values["egfr"]), self.habits.egfr_unit)
            yield self._observation(moment, "33914-3", "Estimated glomerular filtration rate", "laboratory", egfr)
        if "smoking" in values:
            code, display = SMOKING[round(values["smoking"])][day % 2]
            observation = self._frame(moment, "72166-2", "Tobacco smoking status", "social-history")
            yield observation | {"valueCodeableConcept": coded(SNOMED, code, display)}

    def condition(self, name: str, day: int) -> Resource:
        code, display = CONDITIONS[name]
        status = "http://terminology.hl7.org/CodeSystem/condition"
        return {
            "resourceType": "Condition",
            "id": self._id("c"),
            "clinicalStatus": {"coding": [{"system": f"{status}-clinical", "code": "active"}]},
            "verificationStatus": {"coding": [{"system": f"{status}-ver-status", "code": "confirmed"}]},
            "code": coded(SNOMED, code, display),
            "subject": self._subject,
            "onsetDateTime": _iso(day),
            "note": [{"text": self.person.note}],
        }

    def prescription(self, drug: int, day: int) -> Resource:
        code, display, dose = DRUGS[drug]
        return {
            "resourceType": "MedicationRequest",
            "id": self._id("m"),
            "status": "active",
            "intent": "order",
            "medicationCodeableConcept": coded(ATC, code, display),
            "subject": self._subject,
            "authoredOn": _iso(day),
            "dosageInstruction": [{"text": f"{dose} once daily", "patientInstruction": self.person.note}],
        }

    def _pressure(self, moment: str, systolic: int, diastolic: int) -> Iterator[Resource]:
        readings = (
            ("8480-6", "Systolic blood pressure", quantity(systolic, "mm[Hg]")),
            ("8462-4", "Diastolic blood pressure", quantity(diastolic, "mm[Hg]")),
        )
        if not self.habits.pressure_panel:
            for code, title, value in readings:
                yield self._observation(moment, code, title, "vital-signs", value)
            return
        panel = self._frame(moment, "85354-9", "Blood pressure panel", "vital-signs")
        components = [{"code": coded(LOINC, code, title), "valueQuantity": value} for code, title, value in readings]
        yield panel | {"component": components}

    def _cholesterol(self, mg_dl: float) -> dict[str, Any]:
        if self.habits.molar:
            return quantity(round(_turned(mg_dl, "mg/dL", "mmol/L", molar_mass=CHOLESTEROL_MOLAR_MASS), 2), "mmol/L")
        return quantity(round(mg_dl), "mg/dL")

    def _hba1c(self, percent: float) -> dict[str, Any]:
        if self.habits.hba1c_ifcc:
            return quantity(round(_turned(percent, "%", "mmol/mol", loinc="59261-8")), "mmol/mol")
        return quantity(round(percent, 1), "%")

    def _observation(self, moment: str, code: str, title: str, category: str, value: dict[str, Any]) -> Resource:
        return self._frame(moment, code, title, category) | {"valueQuantity": value}

    def _frame(self, moment: str, code: str, title: str, category: str) -> Resource:
        observation: Resource = {
            "resourceType": "Observation",
            "id": self._id("o"),
            "status": "final",
            "category": [{"coding": [{"system": CATEGORY, "code": category}]}],
            "code": coded(LOINC, code, title),
            "subject": self._subject,
            "effectiveDateTime": moment,
        }
        if code in ("8480-6", "85354-9"):
            observation["note"] = [{"text": self.person.note}]
        return observation
