"""The privacy statement that travels with a release (after NIST SP 800-226, section 2.4), typed and in plain words."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.errors import InputError
from vht_federate.framing import Reply

__all__ = [
    "Gradients",
    "PrivacyStatement",
    "Share",
    "plain_words",
    "read_statement",
    "reported_gradient_engines",
    "statement_schema",
]


class Share(BaseModel):
    """What one release cost, as a part of the whole study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["component", "cohort"]
    epsilon: float = Field(ge=0)
    delta: float = Field(gt=0, lt=1)
    events: tuple[PrivacyEvent, ...]


class Named(BaseModel):
    """A word of a fixed vocabulary and what it means."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    text: str = ""


class Gradients(BaseModel):
    """Which engine took the gradients of patients at one node, and why it was not the fast one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["book-keeping", "torch.func"]
    why: str = Field(default="", max_length=200)


class Mechanism(BaseModel):
    """Sampling, clipping and noise of a step of training."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    sampling: str
    sampling_rate: float = Field(gt=0, le=1)
    clipping: str
    clipping_norm: float = Field(gt=0)
    noise: Named
    planned: tuple[PrivacyEvent, ...]


class NodeSpend(BaseModel):
    """What truly ran at one node."""

    model_config = ConfigDict(extra="allow", frozen=True)

    epsilon: dict[Literal["train", "test"], float]
    events: tuple[PrivacyEvent, ...]
    gradients: Gradients | None = None


class PrivacyStatement(BaseModel):
    """A guarantee for one patient at one node over a whole study; further members are allowed and kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    schema_version: str
    framework: str
    epsilon: float = Field(ge=0)
    delta: float = Field(gt=0, lt=1)
    epsilon_by_population: dict[Literal["train", "test"], float]
    unit: str
    neighbouring_relation: Named
    accountant: Named
    trust_model: Named
    mechanism: Mechanism
    limits: tuple[str, ...]
    nodes: dict[str, NodeSpend]
    release: Share | None = None


def reported_gradient_engines(replies: Mapping[str, Reply]) -> dict[str, dict[str, str]]:
    """Which engine each node says it took gradients with, by its training's first output; nonsense is left out."""
    engines = {}
    for name, reply in replies.items():
        try:
            gradients = Gradients.model_validate(
                {"engine": reply.result.get("engine"), "why": reply.result.get("engine_why", "")}
            )
        except ValidationError:
            continue
        engines[name] = gradients.model_dump(mode="json")
    return engines


def statement_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of ``privacy_statement.json``; the package ships it as a file."""
    schema = PrivacyStatement.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def read_statement(raw: dict[str, Any]) -> PrivacyStatement:
    """Raises InputError VHT-INPUT-STATEMENT."""
    try:
        return PrivacyStatement.model_validate(raw)
    except ValidationError as error:
        places = sorted({".".join(map(str, item["loc"])) or "statement" for item in error.errors()})
        raise InputError(f"not a privacy statement at: {', '.join(places)}", code="VHT-INPUT-STATEMENT") from error


def plain_words(statement: PrivacyStatement) -> list[str]:
    """What the numbers promise and what they do not, one sentence each, for people."""
    epsilon, share = f"{statement.epsilon:.3g}", statement.release
    promise = (
        f"Differential privacy with epsilon {epsilon} and delta {statement.delta:g} for each {statement.unit} at each "
        "hospital, over everything that this study released: training, metrics and tables."
    )
    meaning = (
        "Whether or not one particular patient's records were in a hospital's data changes the probability of any "
        f"outcome of the study by a factor of at most e^{epsilon}, except with probability delta."
    )
    words = [promise, meaning]
    if share is not None:
        words.append(f"The releases behind this {share.kind} alone cost epsilon {share.epsilon:.3g} at the same delta.")
    if statement.trust_model.text:
        words.append(statement.trust_model.text)
    words.extend(statement.limits)
    words.append(
        "A patient whose data serves other studies pays for each of them. No claim is made that this release is "
        "anonymous in the legal sense."
    )
    return words
