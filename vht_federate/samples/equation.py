"""The truth behind the generated cohorts: a proportional-hazards equation in the manner of published risk scores.

    risk(t) = 1 - S0(t) ** exp(sum of coefficient * (value - centre) / step)

The form and the choice of factors follow D'Agostino et al., Circulation 2008;117:743-53 (Framingham) and SCORE2-
Diabetes, Eur Heart J 2023;44:2544-56. The coefficients are ours, of a clinical size; they are written beside the data.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["HORIZON_YEARS", "SURVIVAL_10Y", "TERMS", "Term", "hazard_per_year", "risk_10y", "truth"]

Floats = npt.NDArray[np.float64]
HORIZON_YEARS = 10
SURVIVAL_10Y = 0.915  # of a patient at every centre


@dataclass(frozen=True)
class Term:
    """``coefficient`` is the log hazard ratio of one ``step`` above ``centre``, in the port's unit."""

    port: str
    coefficient: float
    centre: float = 0.0
    step: float = 1.0


TERMS: tuple[Term, ...] = (
    Term("age", 0.62, centre=58.0, step=10.0),
    Term("male", 0.42),
    Term("systolic_bp", 0.34, centre=132.0, step=20.0),
    Term("total_cholesterol", 0.26, centre=205.0, step=40.0),
    Term("hdl_cholesterol", -0.30, centre=50.0, step=15.0),
    Term("body_mass_index", 0.14, centre=28.0, step=5.0),
    Term("hba1c", 0.19, centre=5.9, step=1.0),
    Term("egfr", -0.20, centre=82.0, step=15.0),
    Term("smoker", 0.64),
    Term("diabetes", 0.42),
    Term("antihypertensive", 0.15),
)


def _log_hazard_ratio(factors: Mapping[str, Floats]) -> Floats:
    parts = [term.coefficient * (factors[term.port] - term.centre) / term.step for term in TERMS]
    total: Floats = np.sum(parts, axis=0, dtype=np.float64)
    return total


def hazard_per_year(factors: Mapping[str, Floats]) -> Floats:
    """Constant hazard of each patient, [patients] per year, from the factors by port name, each [patients]."""
    baseline = -math.log(SURVIVAL_10Y) / HORIZON_YEARS
    hazard: Floats = baseline * np.exp(_log_hazard_ratio(factors))
    return hazard


def risk_10y(factors: Mapping[str, Floats]) -> Floats:
    """Probability of the outcome within ten years, [patients]."""
    risk: Floats = 1.0 - np.exp(-HORIZON_YEARS * hazard_per_year(factors))
    return risk


def truth() -> dict[str, Any]:
    """The equation as JSON."""
    return {
        "equation": "risk = 1 - survival_10y ** exp(sum(coefficient * (value - centre) / step))",
        "survival_10y": SURVIVAL_10Y,
        "horizon_years": HORIZON_YEARS,
        "terms": [
            {"port": term.port, "coefficient": term.coefficient, "centre": term.centre, "step": term.step}
            for term in TERMS
        ],
    }
