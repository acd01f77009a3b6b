"""The model card: what a component is for, how it was made, how well it does, what it costs in privacy."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vht_federate.components.contract import Component, Port
from vht_federate.domain.figures import CONFIDENCE, THRESHOLD, WIDEST, released_figures
from vht_federate.packaging.statement import PrivacyStatement, plain_words
from vht_federate.text import counted

__all__ = ["CardFacts", "markdown_table", "render_card"]


class CardFacts(BaseModel):
    """What a run knows of its result. All of it is public: metrics were released under differential privacy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study_id: str
    permit_id: str
    purpose: str
    created_at: datetime
    nodes: int = Field(ge=1)
    rounds: int = Field(ge=0)
    patients_noised: float | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, float] | None = None
    evaluation_intervals: dict[str, tuple[float, float]] | None = None
    evaluation_threshold: float = THRESHOLD
    limitations: tuple[str, ...] = ()


def render_card(
    component: Component, profile: str, description: str, facts: CardFacts, statement: dict[str, Any]
) -> str:
    """The card as Markdown. ``description`` is the component's own ``card.md`` (its intended use)."""
    outcome = component.outcome(profile)
    sections = [
        f"# {component.title} ({component.name} {component.version}, profile {profile})",
        f"{component.description}\n\nPredicts: {outcome.title}. Licence: {component.license}.",
        _body(description),
        "## Inputs\n\n"
        + markdown_table(("port", "meaning", "kind", "unit", "LOINC", "bounds"), map(_port, component.inputs(profile))),
        f"## How it was made\n\n{_making(facts)}",
        f"## How well it does\n\n{_evaluation(facts)}",
        "## Privacy\n\n" + "\n".join(f"- {line}" for line in plain_words(PrivacyStatement.model_validate(statement))),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in (*_LIMITS, *facts.limitations)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


_LIMITS = (
    "A research component, not a medical device: it supports no decision about a person's care.",
    "Inputs are clamped to their bounds; a missing input has its own learned effect.",
    "It has seen the hospitals of this study only; validate it on your own patients before you rely on it.",
)


def markdown_table(columns: tuple[str, ...], rows: Any) -> str:
    """A Markdown table; None is an en dash, a bar inside a cell is escaped."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = ("–" if cell is None else str(cell).replace("|", "\\|") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _body(description: str) -> str:
    """A component's own card without its title, which this card has."""
    first, _, rest = description.strip().partition("\n")
    return rest.strip() if first.startswith("# ") else description.strip()


def _port(port: Port) -> tuple[str | None, ...]:
    bounds = f"{port.bounds[0]:g} to {port.bounds[1]:g}" if port.bounds else None
    return (port.name, port.title, port.kind, port.unit, port.loinc, bounds)


def _making(facts: CardFacts) -> str:
    patients = (
        ""
        if facts.patients_noised is None
        else f", about {facts.patients_noised:,.0f} training patients (a noised count)"
    )
    summary = (
        f"Trained on {facts.created_at:%Y-%m-%d} by study `{facts.study_id}` under permit `{facts.permit_id}` "
        f"(purpose {facts.purpose}): {counted(facts.nodes, 'hospital')}, {counted(facts.rounds, 'round')}{patients}."
    )
    lines = [summary]
    if facts.training:
        lines.append(markdown_table(("setting", "value"), facts.training.items()))
    return "\n\n".join(lines)


def _evaluation(facts: CardFacts) -> str:
    if not facts.evaluation:
        return "Not evaluated on patients in this study."
    note = (
        "On the hospitals' test patients (a fixed public split), from noised tables, those of all hospitals added up. "
        f"With {CONFIDENCE:.0%} confidence the figure without noise lies in the interval; that the test patients are a "
        f"sample comes on top. A figure whose interval is wider than {WIDEST:g} says nothing, and is not given."
    )
    figures = released_figures(facts.evaluation, facts.evaluation_intervals, facts.evaluation_threshold).values()
    rows = (
        (figure.title, f"{figure.value:.3f}" if figure.informative else "says nothing", figure.interval)
        for figure in figures
    )
    return f"{note}\n\n{markdown_table(('metric', 'value', 'interval'), rows)}"
