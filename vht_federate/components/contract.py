"""The twin component contract: typed, unit-bearing ports, and profiles that choose among them.

A component is a folder: ``component.toml`` (this contract), Python files, a model card. Its digest covers all of
them (``digest.py``). Reading the contract imports no code of the component and no torch.
"""

import tomllib
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vht_federate.errors import InputError

__all__ = ["Component", "Output", "Port", "Profile", "Source", "parse_component", "read_component"]

LOINC = "http://loinc.org"
MAX_STEPS = 4096
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class Source(BaseModel):
    """Where a node finds a port's value in FHIR R4.

    ``observation``: Observation.valueQuantity. ``observation-code``: Observation.valueCodeableConcept, coded in
    ``system``. ``observation-boolean``: Observation.valueBoolean. ``condition``, ``medication``: presence of a
    Condition.code, MedicationRequest.medicationCodeableConcept. ``age``, ``sex``: from Patient.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["age", "sex", "observation", "observation-code", "observation-boolean", "condition", "medication"]
    codes: tuple[str, ...] = ()  # of the resource's code, in code_system (Observation) or system (others)
    code_system: str = LOINC
    system: str = ""  # of the coded value (observation-code), or of the code (condition, medication)
    values: tuple[str, ...] = ()  # observation-code to boolean: codes that mean true
    negatives: tuple[str, ...] = ()  # observation-code to boolean: codes that mean false
    equals: str = ""  # sex


class Port(BaseModel):
    """One typed input or outcome. ``unit`` is UCUM; ``bounds`` are public clinical bounds in that unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    title: str
    direction: Literal["input", "outcome"] = "input"
    kind: Literal["quantity", "boolean", "category"]
    unit: str | None = None
    loinc: str | None = None
    bounds: tuple[float, float] | None = None
    molar_mass: float | None = None  # g/mol, for mmol/L <-> mg/dL
    categories: tuple[str, ...] = ()
    aggregate: Literal["last", "mean"] = "last"  # of several values in one window of a sequence
    source: Source

    @model_validator(mode="after")
    def _typed(self) -> "Port":
        if self.kind == "quantity" and (self.unit is None or self.bounds is None or self.bounds[0] >= self.bounds[1]):
            raise ValueError(f"port {self.name}: a quantity has a unit and bounds")
        if self.kind == "category" and len(self.categories) < 2:
            raise ValueError(f"port {self.name}: a category has at least two categories")
        if self.aggregate == "mean" and (self.kind, self.source.type) != ("quantity", "observation"):
            raise ValueError(f"port {self.name}: only an observed quantity has a mean")
        return self


class Profile(BaseModel):
    """A choice of inputs and one outcome, and the days before which a record's inputs lie.

    ``index`` says which day that is. ``landmark``: each of ``landmarks``, public days; the outcome counts where its
    onset lies within ``horizon_years`` after it, and a patient whose onset came before has no record there. ``onset``:
    one record per patient, before the day of the outcome's first onset, or, for a patient without the outcome, before
    the day of the last resource recorded.

    ``layout`` says what of each input a record holds. ``tabular``: the last value. ``repeated``: the last ``steps``
    values of each port, each port at its own times. ``sequence``: ``steps`` windows of ``window_days`` days that end
    with the index day, one value per port and window (``Port.aggregate``).

    ``cohort`` names a file in the component's folder: a SQL on FHIR ViewDefinition, whose rows name in their column
    ``patient`` whom the profile is about. Nobody else has a record.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    inputs: tuple[str, ...] = Field(min_length=1)
    outcome: str
    cohort: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}\.json$")] | None = None
    index: Literal["landmark", "onset"] = "landmark"
    landmarks: tuple[date, ...] = ()
    horizon_years: int = Field(default=0, ge=0)  # 0: the outcome counts whenever it was recorded
    layout: Literal["tabular", "repeated", "sequence"] = "tabular"
    steps: int = Field(default=1, ge=1, le=MAX_STEPS)
    window_days: int = Field(default=0, ge=0, le=36_525)

    @model_validator(mode="after")
    def _laid_out(self) -> "Profile":
        if self.layout == "tabular" and self.steps != 1:
            raise ValueError("a tabular profile has one step: the last value")
        if (self.layout == "sequence") != (self.window_days > 0):
            raise ValueError("a sequence has windows of at least one day, other layouts have none")
        return self

    @model_validator(mode="after")
    def _indexed(self) -> "Profile":
        if self.index == "landmark" and not (self.landmarks and "horizon_years" in self.model_fields_set):
            raise ValueError("a profile indexed by landmark has at least one landmark, and states its horizon")
        if self.index == "onset" and (self.landmarks or self.horizon_years):
            raise ValueError("a profile indexed by onset has neither landmarks nor a horizon")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one record's values: (inputs,), or (steps, inputs) where the layout has steps."""
        return (len(self.inputs),) if self.layout == "tabular" else (self.steps, len(self.inputs))


class Output(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    kind: Literal["probability"]
    unit: str


class Component(BaseModel):
    """``component.toml``, validated.

    ``borrows`` names files that ship with this package for several components (``components/shared``): they count as
    files of the component, for its code and for its digest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal["1"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    version: str
    title: str
    description: str
    license: str
    entry: Annotated[str, Field(pattern=r"^[a-z_]+:[a-z_]+$")]
    borrows: tuple[Annotated[str, Field(pattern=r"^[a-z_]+\.py$")], ...] = ()
    output: Output
    ports: tuple[Port, ...]
    profiles: dict[str, Profile]

    @model_validator(mode="after")
    def _closed(self) -> "Component":
        directions = {port.name: port.direction for port in self.ports}
        if len(directions) != len(self.ports):
            raise ValueError("two ports share a name")
        for name, profile in self.profiles.items():
            unknown = [port for port in profile.inputs if directions.get(port) != "input"]
            if unknown or directions.get(profile.outcome) != "outcome":
                raise ValueError(f"profile {name} names ports that the component lacks")
        return self

    def port(self, name: str) -> Port:
        """Raises InputError for a port that the component lacks."""
        for port in self.ports:
            if port.name == name:
                return port
        raise InputError(f"component {self.name} has no port {name}", code="VHT-INPUT-PORT")

    def profile(self, name: str) -> Profile:
        if name not in self.profiles:
            raise InputError(
                f"component {self.name} has no profile {name}",
                code="VHT-INPUT-PROFILE",
                hint=f"it has: {', '.join(sorted(self.profiles))}",
            )
        return self.profiles[name]

    def inputs(self, profile: str) -> tuple[Port, ...]:
        """Input ports of ``profile``, in the order of the tensor's columns."""
        return tuple(self.port(name) for name in self.profile(profile).inputs)

    def outcome(self, profile: str) -> Port:
        return self.port(self.profile(profile).outcome)

    def columns(self, profile: str) -> tuple[str, ...]:
        """Names of all ports a study with this profile reads: inputs, then the outcome."""
        chosen = self.profile(profile)
        return (*chosen.inputs, chosen.outcome)


def parse_component(content: bytes, folder: str) -> Component:
    """``component.toml`` of the folder of that name. Raises InputError VHT-INPUT-COMPONENT, which names the fields."""
    try:
        return Component.model_validate(tomllib.loads(content.decode()))
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in error.errors())
        raise InputError(
            f"component.toml in {folder} does not fit the contract at {places}", code="VHT-INPUT-COMPONENT"
        ) from error
    except ValueError as error:
        raise InputError(
            f"component.toml in {folder} is not TOML: {str(error).splitlines()[0]}", code="VHT-INPUT-COMPONENT"
        ) from error


def read_component(folder: Path) -> Component:
    """Read ``folder/component.toml``. Raises InputError VHT-INPUT-COMPONENT."""
    try:
        content = (folder / "component.toml").read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder.name} is not a component: it has no component.toml to read", code="VHT-INPUT-COMPONENT"
        ) from error
    return parse_component(content, folder.name)
