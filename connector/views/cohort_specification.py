"""What a cohort is to hold: one profile of a component, the columns of a permit, and who is left out."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from connector.fhir.codes import CodeMaps, read_code_maps
from vht_federate.components.contract import Component, Profile
from vht_federate.errors import ViewError

__all__ = ["CohortSpecification"]


@dataclass(frozen=True)
class CohortSpecification:
    """One cohort.

    Data of a port outside ``columns`` is never read: its column is missing throughout. ``excluded_subjects`` are
    subject keys that opted out. Patients are numbered in the order of their ``pseudonym`` under the permit (default:
    of their subject), so that equal numbers in cohorts of two permits mean nothing (Article 66). ``cohort_view`` is
    the ViewDefinition that the profile names as its inclusion criteria. ``maps`` say which codes in the data stand for
    those that ports name; by default those that ship.
    """

    component: Component
    profile_name: str
    columns: Collection[str]
    excluded_subjects: Collection[str] = ()
    pseudonym: Callable[[str], str] | None = None
    cohort_view: Mapping[str, Any] | None = None
    maps: CodeMaps = field(default_factory=read_code_maps)

    @classmethod
    def of_every_column(cls, component: Component, profile_name: str, **others: Any) -> "CohortSpecification":
        """The cohort of somebody who may read all that the profile reads."""
        return cls(component, profile_name, component.columns(profile_name), **others)

    @property
    def profile(self) -> Profile:
        """Raises InputError VHT-INPUT-PROFILE where the component has none of this name."""
        return self.component.profile(self.profile_name)

    def read_columns(self) -> frozenset[str]:
        """The columns that the profile needs and the permit opens.

        Raises InputError for a column that the component does not have, ViewError VHT-VIEW-OUTCOME where the profile's
        outcome is not among the columns.
        """
        for name in self.columns:
            self.component.port(name)
        permitted = frozenset(self.columns) & frozenset(self.component.columns(self.profile_name))
        if self.profile.outcome not in permitted:
            raise ViewError(
                "the permitted columns lack the profile's outcome",
                code="VHT-VIEW-OUTCOME",
                hint="a permit for this profile lists its outcome port among its columns",
            )
        return permitted
