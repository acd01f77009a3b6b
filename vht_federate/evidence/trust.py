"""``trust.json``: the public keys a verifier brings from outside the bundle."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vht_federate.errors import InputError
from vht_federate.signing.keys import PublicKey
from vht_federate.signing.strict_json import read_json

__all__ = ["TrustFile"]


class TrustFile(BaseModel):
    """Keys of the permit issuer, the coordinator and each node, as JWK. Obtain them from their owners."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: dict[str, Any]
    coordinator: dict[str, Any]
    nodes: dict[str, dict[str, Any]] = Field(min_length=1)

    @field_validator("issuer", "coordinator")
    @classmethod
    def _key(cls, jwk: dict[str, Any]) -> dict[str, Any]:
        return _checked(jwk)

    @field_validator("nodes")
    @classmethod
    def _keys(cls, nodes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {name: _checked(jwk) for name, jwk in nodes.items()}

    @classmethod
    def read(cls, path: Path) -> "TrustFile":
        """Raises InputError VHT-INPUT-TRUST."""
        try:
            return cls.model_validate(read_json(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path.name} is not a trust file",
                code="VHT-INPUT-TRUST",
                hint="make one with 'vht audit trust --issuer F --coordinator F --node NAME=F --out trust.json'",
            ) from error

    @classmethod
    def of(cls, issuer: PublicKey, coordinator: PublicKey, nodes: dict[str, PublicKey]) -> "TrustFile":
        jwks = {name: dict(key.jwk()) for name, key in nodes.items()}
        return cls(issuer=dict(issuer.jwk()), coordinator=dict(coordinator.jwk()), nodes=jwks)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=2) + "\n")

    @property
    def issuer_key(self) -> PublicKey:
        return PublicKey.from_jwk(self.issuer)

    @property
    def coordinator_key(self) -> PublicKey:
        return PublicKey.from_jwk(self.coordinator)

    def node_key(self, name: str) -> PublicKey | None:
        """None for a node that the verifier does not know."""
        return PublicKey.from_jwk(self.nodes[name]) if name in self.nodes else None


def _checked(jwk: dict[str, Any]) -> dict[str, Any]:
    try:
        PublicKey.from_jwk(jwk)
    except InputError as error:
        raise ValueError(error.message) from error
    return jwk
