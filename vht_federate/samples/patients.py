"""Whom a hospital treats: risk factors, visits over the years, and what becomes of each patient."""

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

from vht_federate.samples.equation import hazard_per_year, risk_10y
from vht_federate.samples.hospitals import Habits

__all__ = ["FIRST_LANDMARK", "MEASURES", "Population", "draw_population"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Days = npt.NDArray[np.int64]

FIRST_LANDMARK = date(2010, 1, 1).toordinal()
FIRST_VISIT = date(2005, 3, 1).toordinal()
LAST_VISIT = date(2011, 12, 15).toordinal()
LAST_DAY = date(2022, 12, 31).toordinal()
VISITS = 5
NEVER = 0  # an ordinal before all others: it did not happen

# within-person standard deviation between visits, and the share of visits at which each is measured
MEASURES: dict[str, tuple[float, float]] = {
    "systolic_bp": (7.0, 0.95),
    "diastolic_bp": (5.0, 0.95),
    "body_mass_index": (0.5, 0.75),
    "total_cholesterol": (11.0, 0.65),
    "hdl_cholesterol": (3.5, 0.65),
    "hba1c": (0.20, 0.60),
    "egfr": (5.0, 0.65),
    "smoking": (0.0, 0.40),
}
_GROUP = {
    "systolic_bp": "pressure",
    "diastolic_bp": "pressure",
    "body_mass_index": "bmi",
    "total_cholesterol": "lipids",
    "hdl_cholesterol": "lipids",
    "hba1c": "hba1c",
    "egfr": "egfr",
    "smoking": "smoking",
}


@dataclass(frozen=True)
class Population:
    """Arrays over patients; days are proleptic ordinals, ``NEVER`` where nothing happened.

    ``factors``: the long-run value of each port, [patients]. ``measured``: value at each visit, [patients, visits],
    NaN where not measured; ``smoking`` holds 1 current, 0 former, -1 never.
    """

    factors: dict[str, Floats]
    measured: dict[str, Floats]
    visits: Days  # [patients, visits]
    born: Days
    event: Days
    event_is_stroke: Bools
    earlier_event: Days
    died: Days
    diabetes_since: Days
    hypertension_since: Days
    treated_since: Days
    drug: Days  # index
    risk: Floats

    def __len__(self) -> int:
        return len(self.born)


def draw_population(count: int, habits: Habits, rng: np.random.Generator) -> Population:
    """``count`` patients of a hospital with these habits."""
    factors = _factors(count, habits, rng)
    visits = np.sort(rng.integers(FIRST_VISIT, LAST_VISIT, size=(count, VISITS)), axis=1)
    visits[:, 0] = np.minimum(visits[:, 0], FIRST_LANDMARK - rng.integers(5, 900, size=count))
    visits = np.sort(visits, axis=1)
    born = FIRST_LANDMARK - np.round(factors["age"] * 365.25).astype(np.int64)
    event, earlier, died = _fates(factors, rng)
    return Population(
        factors=factors,
        measured=_measured(factors, visits, habits, rng),
        visits=visits,
        born=born,
        event=event,
        event_is_stroke=rng.random(count) < 0.36,
        earlier_event=earlier,
        died=died,
        diabetes_since=_since(factors["diabetes"] > 0, rng, 900, 5000),
        hypertension_since=_since(rng.random(count) < 0.1 + 0.8 * (factors["systolic_bp"] > 140), rng, 800, 4500),
        treated_since=_since(factors["antihypertensive"] > 0, rng, 30, 2500),
        drug=rng.integers(0, 4, size=count),
        risk=risk_10y(factors),
    )


def _factors(count: int, habits: Habits, rng: np.random.Generator) -> dict[str, Floats]:
    normal = rng.standard_normal((7, count))
    uniform = rng.random((4, count))
    age = np.clip(habits.age[0] + habits.age[1] * normal[0], 25.0, 88.0)
    male = (uniform[0] < habits.male).astype(np.float64)
    bmi = np.clip(27.2 + habits.bmi_shift + 4.6 * normal[1], 16.5, 52.0)
    diabetes = _chance(habits.diabetes_log_odds + 0.035 * (age - 58) + 0.11 * (bmi - 27), uniform[1])
    smoker = (uniform[2] < np.clip(habits.smoker * (1.0 - 0.012 * (age - 55)), 0.03, 0.6)).astype(np.float64)
    systolic = 130 + habits.systolic_shift + 0.42 * (age - 58) + 0.6 * (bmi - 27) + 15.0 * normal[2]
    treated = _chance(habits.treated_log_odds + 0.055 * (systolic - 138), uniform[3])
    hdl = 55 - 9.0 * male - 0.5 * (bmi - 27) - 3.0 * smoker + 11.5 * normal[3]
    hba1c = 5.45 + 0.008 * (age - 58) + 0.28 * normal[4] + diabetes * (1.5 + np.abs(1.1 * normal[5]))
    egfr = 86 - 0.85 * (age - 58) - 4.0 * diabetes + 13.0 * normal[6]
    return {
        "age": age,
        "male": male,
        "systolic_bp": np.clip(systolic - 7.0 * treated, 92, 212),
        "total_cholesterol": np.clip(206 + habits.cholesterol_shift + 37.0 * rng.standard_normal(count), 95, 390),
        "hdl_cholesterol": np.clip(hdl, 20, 115),
        "body_mass_index": bmi,
        "hba1c": np.clip(hba1c, 4.3, 13.5),
        "egfr": np.clip(egfr, 8, 128),
        "smoker": smoker,
        "diabetes": diabetes,
        "antihypertensive": treated,
    }


def _chance(log_odds: Floats, uniform: Floats) -> Floats:
    return (uniform < 1.0 / (1.0 + np.exp(-log_odds))).astype(np.float64)


def _since(has: Bools, rng: np.random.Generator, least: int, most: int) -> Days:
    return np.where(has, FIRST_LANDMARK - rng.integers(least, most, size=len(has)), NEVER)


def _fates(factors: dict[str, Floats], rng: np.random.Generator) -> tuple[Days, Days, Days]:
    """Days of the outcome after the first landmark, of an earlier one, and of death."""
    count = len(factors["age"])
    event = FIRST_LANDMARK + (rng.exponential(1.0 / hazard_per_year(factors)) * 365.25).astype(np.int64)
    earlier = np.where(rng.random(count) < 0.035, FIRST_LANDMARK - rng.integers(60, 3000, size=count), NEVER)
    fatal, other = rng.random(count) < 0.15, rng.random(count) < 0.04
    other_death = FIRST_LANDMARK + rng.integers(-20, LAST_DAY - FIRST_LANDMARK, size=count)
    died = np.where(other, other_death, np.where(fatal, event + rng.integers(0, 30, size=count), NEVER))
    died = np.where(died > LAST_DAY, NEVER, died)
    event = np.where((event > LAST_DAY) | ((died != NEVER) & (event > died)), NEVER, event)
    return event, earlier, died


def _measured(factors: dict[str, Floats], visits: Days, habits: Habits, rng: np.random.Generator) -> dict[str, Floats]:
    count, measured = len(visits), {}
    stable = dict(factors)
    stable["diastolic_bp"] = 0.45 * factors["systolic_bp"] + 22 + 5 * rng.standard_normal(count)
    former = rng.random(count) < 0.35
    stable["smoking"] = np.where(factors["smoker"] > 0, 1.0, np.where(former, 0.0, -1.0))
    never = {group: rng.random(count) < share for group, share in sorted(habits.missing.items())}
    draws = {group: rng.random(visits.shape) for group in sorted(habits.missing)}
    for name, (spread, share) in MEASURES.items():
        group = _GROUP[name]
        values = stable[name][:, None] + spread * rng.standard_normal(visits.shape)
        skipped = never[group][:, None] | (draws[group] >= share)
        measured[name] = np.where(skipped, np.nan, values)
    return measured
