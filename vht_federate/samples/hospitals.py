"""How hospitals differ: whom they treat, what they forget to measure, and how they write it down."""

from dataclasses import dataclass

__all__ = ["HABITS", "Habits", "hospital_habits", "hospital_sizes"]

SIZES = (1.45, 1.05, 0.6, 0.9)  # of the average


@dataclass(frozen=True)
class Habits:
    """``case_mix``: shifts of the population; ``missing``: share of patients never measured; the rest: coding."""

    kind: str
    age: tuple[float, float]  # mean, standard deviation at the first landmark
    male: float
    systolic_shift: float  # mm[Hg]
    bmi_shift: float  # kg/m2
    cholesterol_shift: float  # mg/dL
    diabetes_log_odds: float
    smoker: float
    treated_log_odds: float
    missing: dict[str, float]
    molar: bool  # mmol/L instead of mg/dL
    molar_codes: bool  # the LOINC codes of substance concentrations
    hba1c_ifcc: bool  # mmol/mol (59261-8) instead of % (4548-4)
    pressure_panel: bool  # 85354-9 with components instead of single observations
    egfr_unit: str
    pack: str  # resource ids start with it


HABITS: tuple[Habits, ...] = (
    Habits(
        kind="general hospital",
        age=(57.0, 11.0),
        male=0.48,
        systolic_shift=0.0,
        bmi_shift=0.0,
        cholesterol_shift=0.0,
        diabetes_log_odds=-1.9,
        smoker=0.24,
        treated_log_odds=-0.6,
        missing={"lipids": 0.10, "hba1c": 0.30, "egfr": 0.12, "bmi": 0.05, "smoking": 0.08, "pressure": 0.01},
        molar=False,
        molar_codes=False,
        hba1c_ifcc=False,
        pressure_panel=False,
        egfr_unit="mL/min/{1.73_m2}",
        pack="gen",
    ),
    Habits(
        kind="heart centre",
        age=(63.0, 9.5),
        male=0.64,
        systolic_shift=7.0,
        bmi_shift=0.4,
        cholesterol_shift=12.0,
        diabetes_log_odds=-1.5,
        smoker=0.30,
        treated_log_odds=0.5,
        missing={"lipids": 0.03, "hba1c": 0.45, "egfr": 0.06, "bmi": 0.12, "smoking": 0.05, "pressure": 0.0},
        molar=True,
        molar_codes=True,
        hba1c_ifcc=True,
        pressure_panel=True,
        egfr_unit="mL/min/{1.73_m2}",
        pack="card",
    ),
    Habits(
        kind="diabetes clinic",
        age=(59.0, 10.0),
        male=0.52,
        systolic_shift=3.0,
        bmi_shift=2.4,
        cholesterol_shift=-6.0,
        diabetes_log_odds=0.9,
        smoker=0.19,
        treated_log_odds=0.2,
        missing={"lipids": 0.08, "hba1c": 0.02, "egfr": 0.04, "bmi": 0.03, "smoking": 0.22, "pressure": 0.02},
        molar=True,
        molar_codes=False,
        hba1c_ifcc=True,
        pressure_panel=False,
        egfr_unit="mL/min",
        pack="dia",
    ),
    Habits(
        kind="rural practice network",
        age=(51.0, 12.0),
        male=0.45,
        systolic_shift=-3.0,
        bmi_shift=0.8,
        cholesterol_shift=-3.0,
        diabetes_log_odds=-2.2,
        smoker=0.33,
        treated_log_odds=-0.9,
        missing={"lipids": 0.28, "hba1c": 0.55, "egfr": 0.33, "bmi": 0.14, "smoking": 0.16, "pressure": 0.04},
        molar=False,
        molar_codes=False,
        hba1c_ifcc=False,
        pressure_panel=True,
        egfr_unit="mL/min/{1.73_m2}",
        pack="rur",
    ),
)


def hospital_habits(index: int) -> Habits:
    """Habits of hospital ``index`` (from 0); more than four hospitals repeat the kinds."""
    return HABITS[index % len(HABITS)]


def hospital_sizes(hospitals: int, patients: int) -> tuple[int, ...]:
    """Patients of each hospital: unequal, at least one each, ``hospitals * patients`` in total."""
    weights = [SIZES[index % len(SIZES)] for index in range(hospitals)]
    total, weight_sum = hospitals * patients, sum(weights)
    sizes = [max(1, int(total * weight / weight_sum)) for weight in weights]
    sizes[0] += total - sum(sizes)
    return tuple(sizes)
