"""Ed25519 signing keys as files, and signed statements as compact JWS (RFC 7515, alg EdDSA).

A private key file is PKCS#8 PEM with mode 0600; a public key travels as a JWK (RFC 8037) whose ``kid`` is its
RFC 7638 thumbprint. A statement is a JWT: the header names ``kid`` and ``typ``; the verifier chooses the key by
its own trust file and never by what the statement says of itself.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vht_federate.errors import InputError, VerificationError
from vht_federate.files import create_private
from vht_federate.signing.canonical import digest_of
from vht_federate.signing.strict_json import StrictJsonError, read_json

__all__ = ["PublicKey", "SigningKey", "require_readable_in_one_way", "unverified_claims"]


def _require_canonical(token: str) -> None:
    """One statement has one spelling: spare bits of base64url are zero and nothing stands around it (RFC 4648, 3.5).

    Without this, a changed last character could still decode to the same signature.
    """
    for part in token.split("."):
        try:
            again = _unpad(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        except ValueError as error:
            raise jwt.DecodeError from error
        if again != part:
            raise jwt.DecodeError


def require_readable_in_one_way(token: str) -> None:
    """Header and claims of a JWT say nothing twice. Raises ``jwt.DecodeError``."""
    try:
        for part in token.split(".")[:2]:
            read_json(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (StrictJsonError, RecursionError, ValueError) as error:
        raise jwt.DecodeError("header or claims can be read in two ways") from error


def _unpad(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key."""

    raw: bytes

    @classmethod
    def from_jwk(cls, jwk: dict[str, Any]) -> "PublicKey":
        try:
            if jwk["kty"] != "OKP" or jwk["crv"] != "Ed25519":
                raise KeyError
            raw = base64.urlsafe_b64decode(jwk["x"] + "=" * (-len(jwk["x"]) % 4))
            Ed25519PublicKey.from_public_bytes(raw)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("this is not an Ed25519 public key in JWK form", code="VHT-INPUT-KEY") from error
        return cls(raw)

    @classmethod
    def read(cls, path: Path) -> "PublicKey":
        try:
            return cls.from_jwk(read_json(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot read a public key from {path.name}",
                code="VHT-INPUT-KEY",
                hint="public key files end in .pub.json and are written by 'vht … keygen' or 'vht … init'",
            ) from error

    @property
    def kid(self) -> str:
        """RFC 7638 thumbprint, base64url."""
        core = {"crv": "Ed25519", "kty": "OKP", "x": _unpad(self.raw)}
        return _unpad(bytes.fromhex(digest_of(core)))

    def jwk(self) -> dict[str, str]:
        return {"kty": "OKP", "crv": "Ed25519", "x": _unpad(self.raw), "kid": self.kid}

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.jwk(), indent=2) + "\n")

    def verify(self, token: str, *, typ: str) -> dict[str, Any]:
        """Claims of a statement of type ``typ`` signed by this key.

        Time claims are not judged here: a verifier compares ``exp`` with the moment that matters to it, which for
        an auditor is the past. Raises VerificationError, also for a statement that says something twice.
        """
        try:
            _require_canonical(token)
            require_readable_in_one_way(token)
            header = jwt.get_unverified_header(token)
            if header.get("typ") != typ:
                raise VerificationError(f"expected a statement of type {typ}", code="VHT-VERIFY-TYPE")
            key = Ed25519PublicKey.from_public_bytes(self.raw)
            options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False}
            claims: dict[str, Any] = jwt.decode(token, key, algorithms=["EdDSA"], options=options)  # type: ignore[arg-type]
        except jwt.PyJWTError as error:
            raise VerificationError(
                f"the signature of this {typ} does not verify with the trusted key",
                code="VHT-VERIFY-SIGNATURE",
            ) from error
        return claims


@dataclass(frozen=True, repr=False)
class SigningKey:
    """An Ed25519 private key. Its repr names the public half only."""

    private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> "SigningKey":
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path) -> "SigningKey":
        try:
            loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"cannot read a private key from {path.name}", code="VHT-INPUT-KEY") from error
        if not isinstance(loaded, Ed25519PrivateKey):
            raise InputError(f"{path.name} holds no Ed25519 key", code="VHT-INPUT-KEY")
        return cls(loaded)

    @classmethod
    def create(cls, path: Path) -> "SigningKey":
        """Make a key at ``path`` (mode 0600) and its public half beside it (``.pub.json``); keep one that exists."""
        if path.exists():
            return cls.read(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        key = cls.generate()
        pem = key.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        create_private(path, pem)
        key.public.write(path.with_suffix(".pub.json"))
        return key

    @property
    def public(self) -> PublicKey:
        raw = self.private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return PublicKey(raw)

    def sign(self, claims: dict[str, Any], *, typ: str, header: Mapping[str, Any] | None = None) -> str:
        """A compact JWS over ``claims``, with more parameters in its ``header`` where they are given."""
        headers = {**(header or {}), "typ": typ, "kid": self.public.kid}
        return jwt.encode(claims, self.private, algorithm="EdDSA", headers=headers)

    def __repr__(self) -> str:
        return f"SigningKey(kid={self.public.kid})"


def unverified_claims(token: str) -> dict[str, Any]:
    """Claims of a statement nobody checked yet: for choosing what to look up, never for deciding.

    Raises InputError where ``token`` is no JWS at all, or says something twice.
    """
    try:
        require_readable_in_one_way(token)
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise InputError("this is not a signed statement (compact JWS)", code="VHT-INPUT-TOKEN") from error
    return claims
