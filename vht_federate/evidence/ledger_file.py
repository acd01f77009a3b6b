"""A node's ledger as an auditor receives it, and the same numbers computed again from its events alone.

The file holds what every run drew and still holds, the caps, and the groups of patients with the same history by size,
without a subject. Groups smaller than the node's smallest cell are left out: their patients paid at most what the
dataset's figures say, which count somebody who was in every run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from vht_federate.domain.budget import POPULATIONS, PrivacyEvent, touching
from vht_federate.errors import InputError, VerificationError
from vht_federate.evidence.finding import TOLERANCE, broken
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.privacy.accounts import Cap, Run
from vht_federate.privacy.filters import SLACK, RdpFilter
from vht_federate.privacy.renyi import renyi_curve
from vht_federate.signing.canonical import digest_of
from vht_federate.signing.keys import PublicKey
from vht_federate.signing.strict_json import read_json

__all__ = ["LEDGER_TYP", "GroupLine", "LedgerAudit", "LedgerFile", "RunLine", "audit_ledger", "group_cost"]

LEDGER_TYP = "vht-ledger+jwt"
_STRICT = ConfigDict(extra="forbid", frozen=True)


class CapLine(BaseModel):
    """``of``: the dataset or the permit whose runs it bounds; None: all."""

    model_config = _STRICT

    name: Literal["patient", "dataset", "permit"]
    of: str | None
    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)


class RunLine(BaseModel):
    """A visit or a query."""

    model_config = _STRICT

    run: str
    dataset: str
    permit: str | None
    drew: tuple[PrivacyEvent, ...]
    holds: tuple[PrivacyEvent, ...]
    everybody: bool  # it may include anybody

    def value(self) -> Run:
        return Run(self.run, self.dataset, self.permit, self.drew, self.holds)


class GroupLine(BaseModel):
    """Patients, to the nearest ten, who were in the same runs; ``epsilon`` as the node's filter counts it."""

    model_config = _STRICT

    population: Literal["train", "test"]
    runs: tuple[str, ...]
    patients: int = Field(ge=1)
    epsilon: float = Field(ge=0)


class LedgerFile(BaseModel):
    """``spent``: scope (``dataset ID``, ``permit ID``) -> population -> epsilon of what was drawn."""

    model_config = _STRICT

    schema_version: Literal["1"] = "1"
    node: str
    at: AwareDatetime
    smallest_cell: int
    caps: tuple[CapLine, ...]
    runs: tuple[RunLine, ...]
    groups: tuple[GroupLine, ...]
    spent: dict[str, dict[Literal["train", "test"], float]]
    statement: str = ""  # the node's signature over all the rest

    @classmethod
    def read(cls, path: Path) -> "LedgerFile":
        """Raises InputError VHT-INPUT-LEDGER."""
        try:
            return cls.model_validate(read_json(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise InputError(f"{path.name} is not a ledger's export", code="VHT-INPUT-LEDGER") from error

    def claims(self) -> dict[str, Any]:
        """What the node signs."""
        return {"node": self.node, "sha256": digest_of(self.model_dump(mode="json", exclude={"statement"}))}


@dataclass(frozen=True)
class LedgerAudit:
    """What was computed again: epsilon by scope and population, and the dearest group's."""

    spent: dict[str, dict[str, float]]
    dearest_group: float
    groups: int
    runs: int


def audit_ledger(file: LedgerFile, key: PublicKey | None) -> LedgerAudit:
    """Raises VerificationError VHT-VERIFY-LEDGER at the first number that differs or passes its cap."""
    if key is not None:
        try:
            signed = key.verify(file.statement, typ=LEDGER_TYP)
        except VerificationError as error:
            raise broken("statement", "is not signed by this node", "LEDGER") from error
        if signed != file.claims():
            raise broken("statement", "was signed over another ledger", "LEDGER")
    runs = {line.run: line for line in file.runs}
    if len(runs) != len(file.runs):
        raise broken("runs", "names a run twice", "LEDGER")
    spent = {scope: _scope(file, scope) for scope in file.spent}
    for scope, by_population in spent.items():
        if any(
            abs(by_population[population] - file.spent[scope][population]) > TOLERANCE for population in POPULATIONS
        ):
            raise broken(f"spent {scope}", "states another epsilon than its events cost", "LEDGER")
    _check_totals(file)
    for place, group in enumerate(file.groups):
        _check_group(f"group {place}", group, file, runs)
    dearest = max((group.epsilon for group in file.groups), default=0.0)
    return LedgerAudit(spent, dearest, len(file.groups), len(file.runs))


def group_cost(rule: RdpFilter, population: str, runs: Mapping[str, Run]) -> float:
    """What the filter counts for a patient of ``population`` who was in all of ``runs``, drawn and held."""
    events = [event for run in runs.values() for event in (*run.drew, *run.holds)]
    return float(rule.charged(renyi_curve(touching(events, population))))


def _scope(file: LedgerFile, scope: str) -> dict[str, float]:
    kind, _, name = scope.partition(" ")
    if kind not in ("dataset", "permit"):
        raise broken(f"spent {scope}", "is neither a dataset's nor a permit's", "LEDGER")
    events = [event for line in file.runs if getattr(line, kind) == name for event in line.drew]
    return epsilon_by_population(events, _cap(file, "patient").delta)


def _cap(file: LedgerFile, name: str) -> CapLine:
    cap_line = next((cap for cap in file.caps if cap.name == name), None)
    if cap_line is None:
        raise broken("caps", f"has no {name}'s cap", "LEDGER")
    return cap_line


def _check_totals(file: LedgerFile) -> None:
    """Caps that count all runs as if one patient had been in each."""
    for cap in file.caps:
        if cap.name == "patient":
            continue
        covered = [line.value() for line in file.runs if _covers(cap, line.value())]
        events = [event for run in covered for event in (*run.drew, *run.holds)]
        for population, cost in epsilon_by_population(events, cap.delta).items():
            if cost > cap.epsilon + SLACK:
                raise broken(f"{cap.name} {cap.of}", f"passes its cap for {population} patients", "LEDGER")


def _check_group(place: str, group: GroupLine, file: LedgerFile, lines: Mapping[str, RunLine]) -> None:
    if any(run not in lines for run in group.runs):
        raise broken(place, "was in a run that the ledger does not hold", "LEDGER")
    if group.patients < file.smallest_cell:
        raise broken(place, "is smaller than the smallest cell", "LEDGER")
    cap = _cap(file, "patient")
    rule = RdpFilter(cap.epsilon, cap.delta)
    runs = {name: line.value() for name, line in lines.items() if line.everybody or name in group.runs}
    if abs(group_cost(rule, group.population, runs) - group.epsilon) > TOLERANCE:
        raise broken(place, "states another epsilon than its events cost", "LEDGER")
    if group.epsilon > cap.epsilon + SLACK:
        exact = epsilon_by_population([event for run in runs.values() for event in (*run.drew, *run.holds)], cap.delta)
        if exact[group.population] > cap.epsilon + SLACK:
            raise broken(place, f"paid more than the cap of epsilon {cap.epsilon:g}", "LEDGER")


def _covers(cap: CapLine, run: Run) -> bool:
    scope = {"dataset": cap.of} if cap.name == "dataset" else {"permit": cap.of}
    return Cap(cap.name, cap.epsilon, cap.delta, **scope).covers(run)
