"""The code maps, read and checked: ``*.toml`` beside this file, one table a feature."""

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["LOINC", "SNOMED", "Feature", "feature_of", "features"]

LOINC, SNOMED = "http://loinc.org", "http://snomed.info/sct"
Url = Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
Loinc = Annotated[str, Field(pattern=r"^[0-9]{1,7}-[0-9]$")]
Snomed = Annotated[str, Field(pattern=r"^[0-9]{6,18}$")]


class Feature(BaseModel):
    """One clinical feature. Units are UCUM, ``molar_mass`` in g/mol, ``bounds`` those of a plausible value in ``unit``.

    ``read_as`` says what a unit means under these very codes, where it says too little by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: str
    kind: Literal["quantity", "coded", "condition"]
    loinc: tuple[Loinc, ...] = ()
    snomed: tuple[Snomed, ...] = ()
    unit: str | None = None
    units: tuple[str, ...] = ()
    read_as: dict[str, str] = {}
    molar_mass: float | None = Field(default=None, gt=0)
    bounds: tuple[float, float] | None = None
    answers: dict[str, tuple[Snomed, ...]] = {}
    source: tuple[Url, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> "Feature":
        if not self.codes:
            raise ValueError("a feature has a code")
        if (self.kind == "quantity") != (self.unit is not None and self.bounds is not None):
            raise ValueError("a quantity, and nothing else, has a unit and bounds")
        if (self.kind == "coded") != bool(self.answers):
            raise ValueError("a coded feature, and nothing else, has answers")
        return self

    @property
    def codes(self) -> tuple[tuple[str, str], ...]:
        """(system, code) of each."""
        return (*((LOINC, code) for code in self.loinc), *((SNOMED, code) for code in self.snomed))


@cache
def features() -> Mapping[str, Feature]:
    """Every feature of the shipped maps, by name."""
    by_name: dict[str, Feature] = {}
    for path in sorted(files("connector.fhir.codes").iterdir(), key=lambda path: path.name):
        if path.name.endswith(".toml"):
            for name, table in tomllib.loads(path.read_text()).items():
                by_name[name] = Feature.model_validate({"name": name, **table})
    return MappingProxyType(by_name)


def feature_of(system: str | None, codes: Iterable[str]) -> Feature | None:
    """The feature that holds all of ``codes``; None for codes that no map lists, or of two features."""
    holders = {_by_code().get((system, code)) for code in codes}
    name = holders.pop() if len(holders) == 1 else None
    return features()[name] if name else None


@cache
def _by_code() -> Mapping[tuple[str | None, str], str]:
    return {coding: feature.name for feature in features().values() for coding in feature.codes}
