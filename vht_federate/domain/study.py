"""A study: the file a coordinator writes, and the signed request that every hospital judges.

``StudyRequest`` travels as a JWT (alg EdDSA, typ ``vht-study+jwt``) signed by a data user whom the permit lists.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from vht_federate.domain.budget import MOST_PATIENTS
from vht_federate.domain.law import DataCategory, Purpose
from vht_federate.domain.permit import Identifier, Sha256
from vht_federate.domain.plan import AdaptiveClipping, Precision, StudyPlan
from vht_federate.errors import InputError
from vht_federate.signing.keys import PublicKey

__all__ = ["STUDY_TYP", "ComponentRef", "NodeRef", "PrivacyTargets", "StudyFile", "StudyRequest", "TrainingChoices"]

STUDY_TYP = "vht-study+jwt"
Patients = Annotated[int, Field(ge=1, le=MOST_PATIENTS)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


def _ed25519(jwk: dict[str, str]) -> dict[str, str]:
    """The one spelling of the key, its thumbprint included."""
    try:
        return PublicKey.from_jwk(jwk).jwk()
    except InputError as error:
        raise ValueError(error.message) from error


Jwk = Annotated[dict[str, str], AfterValidator(_ed25519)]


class ComponentRef(BaseModel):
    """A component by name, version and the digest of its files; ``profile`` picks its inputs and outcome."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    version: str
    digest: Sha256
    profile: Name


class StudyRequest(BaseModel):
    """What a study asks of each node. Public; untrusted until the node has judged it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: str = "1"
    study_id: Identifier
    title: str
    created_at: AwareDatetime
    permit_id: Identifier
    user_kid: str  # of the key that signs this request
    purpose: Purpose
    categories: tuple[DataCategory, ...] = Field(min_length=1)
    dataset_ids: tuple[Identifier, ...] = Field(min_length=1)  # one or more per node taking part
    component: ComponentRef
    columns: tuple[str, ...] = Field(min_length=1)  # port names of the profile: inputs and outcome
    plan: StudyPlan
    codebook: dict[str, Any] | None = None  # public bins and categories of the synthetic cohort
    coordinator_key: Jwk | None = None  # whoever presents this request, and asks about its visits, holds this key

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> "StudyRequest":
        """Raises InputError VHT-INPUT-STUDY naming the places."""
        try:
            return cls.model_validate(claims)
        except ValidationError as error:
            raise _study_error(error) from error

    @property
    def coordinator(self) -> PublicKey | None:
        """None for a request that names no key: nodes admit no such request any more, verifiers still read it."""
        return PublicKey.from_jwk(self.coordinator_key) if self.coordinator_key else None

    def claims(self) -> dict[str, Any]:
        """As they are signed. One that names no coordinator lacks the claim, as its digest in nodes' logs does."""
        claims = self.model_dump(mode="json")
        if self.coordinator_key is None:
            del claims["coordinator_key"]
        return claims


class NodeRef(BaseModel):
    """One hospital as a coordinator knows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name  # as enrolled with vht coordinator enrol
    url: str  # outward listener, https
    dataset: Identifier  # as its catalogue names it, and the permit


class _Study(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Identifier  # name of the study in logs and evidence
    title: str  # one line that operators read
    permit: Path  # the permit's JWT
    user_key: Path  # private key of a data user whom the permit lists
    purpose: Purpose  # in the permit, and open to the data user's kind
    categories: tuple[DataCategory, ...]  # in the permit


class _Component(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Name  # vht component list
    profile: Name  # picks inputs and outcome
    path: Path | None = None  # folder of the component's files; None: the one installed under this name


class PrivacyTargets(BaseModel):
    """Targets; noise multipliers are calibrated from them by ``vht study plan`` (and shown)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    epsilon: float = Field(gt=0)  # whole study, per patient, at one node
    delta: float = Field(gt=0, lt=0.01)  # at most the permit's
    cohort_epsilon: float | None = Field(default=None, gt=0)  # of the marginals alone; None: no synthetic cohort
    evaluation_epsilon: float | None = Field(default=None, gt=0)  # on test patients alone; None: no evaluation


class TrainingChoices(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    rounds: int = Field(default=5, ge=1)  # visits to each hospital
    local_steps: int = Field(default=12, ge=1)  # private steps in each round
    sampling_rate: float = Field(default=0.25, gt=0, le=1)  # chance of a patient to be in a step
    clipping_norm: float = Field(default=1.0, ge=1e-6, le=1e6)  # the most that one patient moves a step
    learning_rate: float = Field(default=0.5, gt=0, le=1e4)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    adaptive_clipping: AdaptiveClipping | None = None  # else the norm moves, from clipping_norm on
    noise_precision: Precision = "float64"  # "float32": faster for large models, and coarser in its low-order bits
    largest_population: Patients | None = None  # training patients of the largest node; with it batches are bounded


class _Federation(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    coordinator: Path  # state directory of the coordinator (vht coordinator init)
    ca: Path  # certificate authority of all HTTPS endpoints below
    platform: str | None = None  # URL; None: do not publish
    issuer: str | None = None  # URL of the permit issuer's status service, for the evidence bundle
    minimum_nodes: int | None = None  # never below the permit's; None: the permit's
    approval_deadline_s: float = Field(default=3600.0, gt=0)  # for the operators, from the request
    round_deadline_s: float = Field(default=120.0, gt=0)  # a hospital that is later is lost to the run


class StudyFile(BaseModel):
    """``study.toml``: what a coordinator writes. Relative paths are relative to the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: _Study
    component: _Component
    privacy: PrivacyTargets
    training: TrainingChoices = TrainingChoices()
    federation: _Federation
    nodes: tuple[NodeRef, ...] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path) -> "StudyFile":
        """Raises InputError VHT-INPUT-STUDY."""
        try:
            raw = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {path.name}", code="VHT-INPUT-STUDY") from error
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path.name} is not TOML: {error}", code="VHT-INPUT-STUDY") from error
        base = path.resolve().parent
        for section, key in (
            ("study", "permit"),
            ("study", "user_key"),
            ("component", "path"),
            ("federation", "coordinator"),
            ("federation", "ca"),
        ):
            table = raw.get(section)
            if isinstance(table, dict) and isinstance(table.get(key), str):
                table[key] = str(base / table[key])
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise _study_error(error) from error


def _study_error(error: ValidationError) -> InputError:
    places = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
    return InputError(
        f"the study does not fit its schema: {places}",
        code="VHT-INPUT-STUDY",
        hint="docs/reference/study-file.md describes every field",
    )
