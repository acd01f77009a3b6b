"""The data permit: what a health data access body allows, to whom, on what, until when (Article 68).

The signed form is a JWT (alg EdDSA, typ ``vht-permit+jwt``) whose claims are this model's JSON.
"""

from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from vht_federate.domain.isolation import IsolationLevel
from vht_federate.domain.law import ActorKind, DataCategory, ProhibitedUse, Purpose
from vht_federate.domain.periods import months_after
from vht_federate.errors import PermitError

__all__ = ["PERMIT_TYP", "STATUS_TYP", "DataUser", "Permit", "ReleaseType", "StatusList"]

PERMIT_TYP = "vht-permit+jwt"
STATUS_TYP = "vht-status-list+jwt"
MAXIMUM_YEARS = 10  # Article 68(12)
MAXIMUM_RETENTION_MONTHS = 6  # the same

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,199}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ReleaseType = Annotated[str, Field(pattern=r"^(component|cohort|metrics)$")]


class DataUser(BaseModel):
    """A person or body entitled to use the data (Article 68(10)(d)), known by the key that signs its requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: ActorKind  # decides which purposes are open
    kid: str  # RFC 7638 thumbprint of the user's Ed25519 key


class Permit(BaseModel):
    """One data permit. All fields are public. Times are UTC.

    ``epsilon``/``delta`` is the ceiling for one patient at one node, add-or-remove-one-patient neighbouring.
    ``columns`` are the names of component ports whose data may be read (Article 66 minimisation).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: str = "1"
    permit_id: Identifier
    hdab: str  # name of the health data access body
    application_ref: str  # the application it answers
    amends: str | None = None  # id of the permit that this one replaces
    issued_at: AwareDatetime
    not_before: AwareDatetime
    expires_at: AwareDatetime  # at most ten years after not_before, by the calendar
    # Article 68(10)(a)-(h), as far as they apply to a federated visit
    categories: tuple[DataCategory, ...] = Field(min_length=1)
    dataset_ids: tuple[Identifier, ...] = Field(min_length=1)  # as the hospitals' catalogues name them
    columns: tuple[str, ...] = Field(min_length=1)  # port names of the component: inputs and outcome
    data_format: str = "pseudonymised, processed in place; only differentially private aggregates leave"
    linkage: bool = False  # between datasets
    purposes: tuple[Purpose, ...] = Field(min_length=1)
    purpose_text: str  # the purpose in words, for operators and patients
    controller: str  # who answers for the processing
    data_users: tuple[DataUser, ...] = Field(min_length=1)
    processing_environment: str = "enclave at each data holder"
    retention_days_after_expiry: int = Field(default=180, ge=0, le=184)  # Article 68(12): at most six months
    prohibited_uses: tuple[ProhibitedUse, ...] = tuple(ProhibitedUse)
    overrides_opt_out: bool = False  # only where the law allows it, Article 71(4)
    # ours
    component_digests: tuple[Sha256, ...] = Field(min_length=1)  # vht component digest NAME
    epsilon: float = Field(gt=0, le=100)  # what one patient pays at most, at one hospital, over all studies under it
    delta: float = Field(gt=0, lt=0.01)
    minimum_nodes: int = Field(ge=1)  # hospitals that must take part to the end
    minimum_cohort: int = Field(default=10, ge=1)  # patients at each hospital, or nothing runs there
    release_types: tuple[ReleaseType, ...] = ("component", "cohort", "metrics")  # what may be made of it
    enclave_isolation: IsolationLevel | None = None  # no enclave below it; without: as each hospital requires

    @model_validator(mode="after")
    def _coherent(self) -> "Permit":
        if not self.issued_at <= self.not_before < self.expires_at:
            raise ValueError("issued_at <= not_before < expires_at does not hold")
        if self.expires_at > months_after(self.not_before, 12 * MAXIMUM_YEARS):
            raise ValueError("a permit lasts at most ten years (Article 68(12))")
        longest = months_after(self.expires_at, MAXIMUM_RETENTION_MONTHS) - self.expires_at
        if timedelta(days=self.retention_days_after_expiry) > longest:
            raise ValueError("data are deleted at most six months after a permit's end (Article 68(12)): fewer days")
        if set(self.prohibited_uses) != set(ProhibitedUse):
            raise ValueError("a permit lists every prohibited use of Article 54")
        return self

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> "Permit":
        """Raises PermitError VHT-PERMIT-MALFORMED."""
        try:
            return cls.model_validate(claims)
        except ValidationError as error:
            places = sorted({".".join(map(str, item["loc"])) or "permit" for item in error.errors()})
            raise PermitError(
                f"the permit is signed but malformed at: {', '.join(places)}", code="VHT-PERMIT-MALFORMED"
            ) from error

    def claims(self) -> dict[str, Any]:
        """What is signed. A demand that is not made is left out: nodes of earlier versions read such a permit."""
        claims = self.model_dump(mode="json")
        if self.enclave_isolation is None:
            del claims["enclave_isolation"]
        return claims


class StatusList(BaseModel):
    """The issuer's signed list of permits that are no longer good, stale after ``valid_until`` (fail closed)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hdab: str
    issued_at: AwareDatetime
    valid_until: AwareDatetime
    serial: int = Field(ge=0)
    revoked: dict[str, AwareDatetime] = Field(default_factory=dict)  # permit_id -> revoked at

    def claims(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def is_revoked(self, permit_id: str, at: datetime) -> bool:
        moment = self.revoked.get(permit_id)
        return moment is not None and moment <= at
