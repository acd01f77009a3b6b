"""The figures of a survey as frozen values: the operator sees them whole, others through ``CountDisclosure``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from connector.fhir.disclosure_control import disclosable_count

__all__ = ["CountDisclosure", "Course", "Feature", "Holding", "Loss", "UnitSeen"]


@dataclass(frozen=True)
class CountDisclosure:
    """How counts are disclosed. ``smallest_cell`` 0: exactly, to the node's own operator. Else to the nearest
    ten, nothing below ``smallest_cell``, and dates by their year: for everybody else."""

    smallest_cell: int = 0

    @property
    def exact(self) -> bool:
        return self.smallest_cell == 0

    def count(self, number: int) -> int | None:
        return number if self.exact else disclosable_count(number, self.smallest_cell)

    def of_patients(self, patients: int, **others: int) -> dict[str, int | None]:
        """The count of patients, and counts of what is theirs: these are not told where that is not."""
        patient_count = self.count(patients)
        return {"patients": patient_count} | {
            name: None if patient_count is None else self.count(n) for name, n in others.items()
        }

    def share(self, part: int, whole: int) -> float | None:
        numerator, denominator = self.count(part), self.count(whole)
        return (
            None
            if not denominator or numerator is None
            else min(1.0, round(numerator / denominator, 4 if self.exact else 2))
        )

    def moment(self, when: datetime | None) -> str | None:
        return None if when is None else when.date().isoformat() if self.exact else str(when.year)

    def counts(self, numbers: Mapping[Any, int]) -> dict[str, int | None]:
        return {str(key): self.count(number) for key, number in numbers.items()}


@dataclass(frozen=True)
class UnitSeen:
    """Values of one code in one unit. ``use``: as it is, converted, read as another unit, or not usable."""

    code: str
    unit: str
    values: int
    patients: int
    use: str
    becomes: str | None = None

    def to_dict(self, shown: CountDisclosure) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in ("code", "unit", "use", "becomes")}
        return {**fields, **shown.of_patients(self.patients, values=self.values)}


@dataclass(frozen=True)
class Feature:
    """One port. ``values`` are in the store under its codes; ``patients`` of the cohort have a usable one before their
    record's day. ``absent_means``: missing, or no (of conditions and medications). ``mapped``: what of the store is
    read beside ``codes``, ``SYSTEM|CODE`` with the code maps by which it is.
    """

    name: str
    title: str
    source: str
    unit: str | None
    codes: tuple[str, ...]
    absent_means: str
    values: int
    patients: int
    units: tuple[UnitSeen, ...] = ()
    mapped: Mapping[str, list[str]] = field(default_factory=dict)

    def to_dict(self, shown: CountDisclosure, cohort: int) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in ("name", "title", "source", "unit", "absent_means")}
        return {
            **fields,
            "codes": list(self.codes),
            **shown.of_patients(self.patients, values=self.values),
            "share": shown.share(self.patients, cohort),
            "units": [unit.to_dict(shown) for unit in self.units],
            "mapped": dict(self.mapped) if shown.exact else None,  # one patient's code would be told
        }


@dataclass(frozen=True)
class Loss:
    """Patients of the store that have no record in the cohort, and why."""

    reason: str
    says: str
    patients: int

    def to_dict(self, shown: CountDisclosure) -> dict[str, Any]:
        return {"reason": self.reason, "says": self.says, "patients": shown.count(self.patients)}


@dataclass(frozen=True)
class Course:
    """What the cohort is like. ``missing``: patients by how many inputs they lack. ``unobserved``: patients without the
    outcome whose data end before its window does, so that nobody saw that they stayed well."""

    patients: int
    records: int
    outcomes: int
    unobserved: int
    missing: Mapping[int, int]

    def to_dict(self, shown: CountDisclosure) -> dict[str, Any]:
        counts = {name: shown.count(getattr(self, name)) for name in ("patients", "records", "outcomes", "unobserved")}
        return {**counts, "missing": shown.counts(self.missing)}


@dataclass(frozen=True)
class Holding:
    """What the store has of one resource type, and how much of it a patient has who has any."""

    type: str
    resources: int
    patients: int
    first: datetime | None
    last: datetime | None
    median: float
    ninth_decile: float
    most: int

    def to_dict(self, shown: CountDisclosure) -> dict[str, Any]:
        known = shown.count(self.patients) is not None
        return {
            "type": self.type,
            **shown.of_patients(self.patients, resources=self.resources),
            "first": shown.moment(self.first) if known else None,
            "last": shown.moment(self.last) if known else None,
            "per_patient": {
                "median": self.median if known else None,
                "ninth_decile": self.ninth_decile if known else None,
                "most": self.most if shown.exact else None,
            },
        }
