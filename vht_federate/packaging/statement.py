"""The privacy statement that travels with a release (after NIST SP 800-226, section 2.4), typed and in plain words.

``evidence.statement_check`` computes it again; ``coordinator_says`` is what nobody can.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.plan import StudyPlan
from vht_federate.errors import InputError
from vht_federate.framing import Reply
from vht_federate.privacy.accounting import epsilon
from vht_federate.privacy.statement import SCHEMA, SCHEMAS

__all__ = [
    "CoordinatorSays",
    "Gradients",
    "PrivacyStatement",
    "Share",
    "cohort_share",
    "own_words",
    "plain_words",
    "read_statement",
    "reported_gradient_engines",
    "statement_schema",
]


_LIBRARY = re.compile(r"dp-accounting [0-9A-Za-z.+-]{1,32}")
_RANDOMNESS_1 = frozenset(
    f"{stream}; Box-Muller; 53-bit uniforms"
    for stream in (
        "AES-128 in counter mode under a key of the operating system",
        "AES-256 in counter mode under a key of the operating system",
        "ChaCha20 keystream under a 256-bit key of the operating system",
    )
)


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

    engine: Literal["book-keeping", "torch.func", "autograd"]
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


class CoordinatorSays(BaseModel):
    """What cannot be computed again from plan, logs and outputs: the coordinator's own words, and shown as such."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accountant_library: str = Field(pattern=r"^dp-accounting [0-9A-Za-z.+-]{1,32}$")
    randomness: str = Field(max_length=200)  # where the nodes' software takes its noise from


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
    coordinator_says: CoordinatorSays | None = None  # None: of schema 1


def own_words(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a statement that nobody can compute again, by their place; empty of none.

    Raises InputError VHT-INPUT-STATEMENT for a schema that is not known, and for words that a statement cannot have: of
    schema 1, where they are not marked as the coordinator's, any but those that its software wrote.
    """
    schema, marked = raw.get("schema_version"), raw.get("coordinator_says")
    if schema not in SCHEMAS:
        raise InputError(
            f"schema {schema!r} of a privacy statement is not known here", code="VHT-INPUT-STATEMENT", hint="upgrade"
        )
    if schema == SCHEMA:
        if marked is None:
            raise InputError("not a privacy statement at: coordinator_says", code="VHT-INPUT-STATEMENT")
        return {"coordinator_says": marked}
    accountant, randomness = raw.get("accountant"), raw.get("randomness")
    library = accountant.get("library") if isinstance(accountant, Mapping) else None
    if marked is not None or not _LIBRARY.fullmatch(str(library)) or randomness not in _RANDOMNESS_1:
        raise InputError(
            "not a privacy statement of schema 1 at: accountant.library, randomness", code="VHT-INPUT-STATEMENT"
        )
    return {"accountant.library": library, "randomness": randomness}


def cohort_share(plan: StudyPlan) -> Share:
    """What the tables behind a cohort cost: every node's log holds exactly these events."""
    events = (*plan.events_of("marginals", 1), *plan.events_of("marginals", 2))
    return Share(kind="cohort", epsilon=epsilon(events, plan.delta), delta=plan.delta, events=events)


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
