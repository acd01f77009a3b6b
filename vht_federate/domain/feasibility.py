"""A feasibility question: how many patients of a dataset meet a cohort definition, which is a ViewDefinition.

It travels as a JWT (alg EdDSA, typ ``vht-feasibility+jwt``) signed by a data user whom the permit lists.
"""

from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from vht_federate.domain.law import DataCategory, Purpose
from vht_federate.domain.permit import Identifier
from vht_federate.errors import InputError
from vht_federate.signing.canonical import digest_of

__all__ = ["FEASIBILITY_TYP", "FeasibilityQuestion"]

FEASIBILITY_TYP = "vht-feasibility+jwt"


class FeasibilityQuestion(BaseModel):
    """What a data user asks of each node. ``epsilon`` is what the answer may cost one patient, at the node's delta.

    ``view`` has a column ``patient`` that is the resource's own patient: ``getResourceKey()`` of a Patient, else
    ``subject.getReferenceKey(Patient)``. Who has a row meets the definition.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: str = "1"
    title: str = Field(max_length=500)
    created_at: AwareDatetime
    permit_id: Identifier
    user_kid: str  # of the key that signs this question
    purpose: Purpose
    categories: tuple[DataCategory, ...] = Field(min_length=1)
    dataset_ids: tuple[Identifier, ...] = Field(min_length=1)
    view: dict[str, Any]
    epsilon: float = Field(gt=0, le=10)

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> "FeasibilityQuestion":
        """Raises InputError VHT-INPUT-QUESTION naming the places."""
        try:
            return cls.model_validate(claims)
        except ValidationError as error:
            places = ", ".join(sorted({".".join(map(str, item["loc"])) for item in error.errors()}))
            raise InputError(
                f"the feasibility question does not fit its schema at: {places}", code="VHT-INPUT-QUESTION"
            ) from error

    def claims(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def asks(self, dataset_id: str) -> str:
        """Digest of what is asked of a dataset, whoever asks: equal questions have one answer."""
        return digest_of({"dataset": dataset_id, "view": self.view, "epsilon": self.epsilon})
