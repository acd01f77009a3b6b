"""The public codebook: how a component's ports become table cells. It holds nothing that comes from patients.

Bins derive from the ports' public clinical bounds alone, so a node recomputes the codebook from the component it
installed and refuses any other. Values outside the bounds fall into the first or last bin.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vht_federate.components.contract import Component, Port
from vht_federate.errors import InputError

__all__ = ["Codebook", "Column", "codebook_for"]

BINS = 10  # enough to keep a distribution's shape, few enough that a two-way table survives its noise
NEVER_MISSING = frozenset({"condition", "medication"})  # absence of a record means absence


class Column(BaseModel):
    """One column's cells: bins of a quantity or levels of a boolean or category, then "missing" where it can be.

    A quantity has ``len(edges) - 1`` bins, right-open but the last; ``decimals`` says how finely a value is written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["quantity", "boolean", "category"]
    unit: str | None = None
    edges: tuple[float, ...] = ()
    levels: tuple[str, ...] = ()
    decimals: int = Field(default=0, ge=0, le=6)
    missing: bool = True

    @model_validator(mode="after")
    def _typed(self) -> "Column":
        rising = all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False))
        if self.kind == "quantity" and (len(self.edges) < 3 or not rising or self.levels):
            raise ValueError("a quantity has rising edges of at least two bins, and no levels")
        if self.kind != "quantity" and (len(set(self.levels)) < 2 or self.edges):
            raise ValueError("a boolean or category has at least two levels, and no edges")
        return self

    @property
    def values(self) -> int:
        """Number of cells without "missing"."""
        return len(self.edges) - 1 if self.kind == "quantity" else len(self.levels)

    @property
    def cells(self) -> int:
        """Number of cells; "missing", where it exists, is the last."""
        return self.values + self.missing

    @property
    def labels(self) -> tuple[str, ...]:
        """What each cell is called."""
        names = self.levels
        if self.kind == "quantity":
            names = tuple(f"[{low:g}, {high:g})" for low, high in zip(self.edges, self.edges[1:], strict=False))
        return (*names, "missing") if self.missing else names


class Codebook(BaseModel):
    """Columns in the order of the component's ports (``order``: inputs, then the target)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal["1"] = "1"
    component: str
    version: str
    profile: str
    order: tuple[str, ...] = Field(min_length=2, max_length=200)
    target: str
    columns: dict[str, Column]

    @model_validator(mode="after")
    def _closed(self) -> "Codebook":
        if set(self.order) != set(self.columns) or len(set(self.order)) != len(self.order):
            raise ValueError("order and columns name the same columns, each once")
        if self.order[-1] != self.target:
            raise ValueError("the target is the last column")
        return self

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "Codebook":
        """Raises InputError VHT-INPUT-CODEBOOK."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            places = sorted({".".join(map(str, item["loc"])) or "codebook" for item in error.errors()})
            raise InputError(f"not a codebook: {', '.join(places)}", code="VHT-INPUT-CODEBOOK") from error

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.order[:-1]

    def cells(self, name: str) -> int:
        return self.columns[name].cells


def codebook_for(component: Component, profile: str) -> dict[str, Any]:
    """The codebook of a component's profile, as the JSON that travels in ``StudyRequest.codebook``.

    Raises InputError VHT-INPUT-LAYOUT for a profile whose records have steps: a table cannot hold them.
    """
    if component.profile(profile).layout != "tabular":
        raise InputError(
            f"a synthetic cohort is a table, and profile {profile} has {component.profile(profile).layout} records",
            code="VHT-INPUT-LAYOUT",
            hint="plan the study without a synthetic cohort",
        )
    ports = (*component.inputs(profile), component.outcome(profile))
    book = Codebook(
        component=component.name,
        version=component.version,
        profile=profile,
        order=tuple(port.name for port in ports),
        target=ports[-1].name,
        columns={port.name: _column(port) for port in ports},
    )
    return book.model_dump(mode="json")


def _column(port: Port) -> Column:
    missing = port.direction == "input" and port.source.type not in NEVER_MISSING
    if port.kind == "boolean":
        return Column(kind="boolean", levels=("false", "true"), missing=missing)
    if port.kind == "category":
        return Column(kind="category", levels=port.categories, missing=missing)
    if port.bounds is None:  # the contract forbids it
        raise InputError(f"port {port.name} has no bounds", code="VHT-INPUT-PORT")
    low, high = port.bounds
    if (port.unit or "").startswith("{") and float(high - low).is_integer() and high - low <= 2 * BINS:
        edges = [low - 0.5 + step for step in range(int(high - low) + 2)]  # a count: one bin for each number
        return Column(kind="quantity", unit=port.unit, edges=tuple(edges), missing=missing)
    width = (high - low) / BINS
    edges = [round(low + width * step, 9) for step in range(BINS + 1)]
    decimals = 0 if width >= 5 else 1 if width >= 0.5 else 2
    return Column(kind="quantity", unit=port.unit, edges=tuple(edges), decimals=decimals, missing=missing)
