"""Proof that whoever sends an HTTP request holds a key: DPoP (RFC 9449), with Ed25519.

A proof is a JWT (typ ``dpop+jwt``, alg EdDSA, the public key as ``jwk`` in its header) for one request: ``htm`` and
``htu`` say which, ``iat`` when, ``jti`` that it is this one, ``ath`` with which token, and ``aud`` at whom it is aimed.
Copied together with its token it opens nothing anywhere else, and here not a second time.

The recipient is named by ``aud`` and not by what stands before the path in ``htu``: behind a reverse proxy a service
sees another host than its peers do, or a shorter path, and a ``Host`` header is whatever its sender writes.
"""

import base64
import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import jwt

from vht_federate.errors import RefusedError, VhtError
from vht_federate.signing.keys import PublicKey, SigningKey

__all__ = ["LIFETIME", "PROOF_HEADER", "PresentedProof", "prove"]

PROOF_HEADER = "DPoP"
PROOF_TYP = "dpop+jwt"
LIFETIME = timedelta(minutes=5)  # and so far may two clocks differ
LONGEST_ID = 128


def prove(key: SigningKey, method: str, url: str, *, recipient: str, now: datetime, token: str | None = None) -> str:
    """The value of the header ``DPoP`` for one request to ``recipient``, sent with ``token`` where there is one."""
    claims: dict[str, Any] = {
        "jti": secrets.token_urlsafe(24),
        "htm": method,
        "htu": url.partition("?")[0].partition("#")[0],
        "iat": int(now.timestamp()),
        "aud": recipient,
    }
    if token is not None:
        claims["ath"] = _hash_of(token)
    return key.sign(claims, typ=PROOF_TYP, header={"jwk": key.public.jwk()})


@dataclass(frozen=True)
class PresentedProof:
    """The method and path of a request that came, and the proof that came with it; "" where none did."""

    method: str = ""
    path: str = ""
    proof: str = ""

    def check(self, key: PublicKey, *, recipient: str, now: datetime, token: str | None = None) -> str:
        """The proof's identifier, which a recipient accepts once within twice LIFETIME.

        Raises RefusedError VHT-REFUSED-PROOF unless ``key`` made the proof for this very request to ``recipient``, a
        moment ago and with ``token`` (RFC 9449 section 4.3).
        """
        if not self.proof:
            raise refused("it came without one")
        try:
            claims = key.verify(self.proof, typ=PROOF_TYP)
            named = PublicKey.from_jwk(jwt.get_unverified_header(self.proof).get("jwk") or {})
        except VhtError as error:
            raise refused("it was not made with that key") from error
        target, issued, identifier = claims.get("htu"), claims.get("iat"), claims.get("jti")
        if named != key:
            raise refused("it names another key in its header")
        if claims.get("aud") != recipient:
            raise refused("it was made for another recipient")
        if claims.get("htm") != self.method or not isinstance(target, str) or not self._aimed_at(target):
            raise refused("it was made for another request")
        if not isinstance(identifier, str) or not 0 < len(identifier) <= LONGEST_ID:
            raise refused("it has no identifier")
        if type(issued) is not int or abs(now.timestamp() - issued) > LIFETIME.total_seconds():
            raise refused("its time is not now", hint="compare the clocks of both machines")
        if claims.get("ath") != (None if token is None else _hash_of(token)):
            raise refused("it was made for another token")
        return identifier

    def _aimed_at(self, url: str) -> bool:
        """The path is ours, or ends in ours: a proxy may have taken a prefix off."""
        return self.path.startswith("/") and urlsplit(url).path.endswith(self.path)


def refused(why: str, *, hint: str = "send a new proof with every request: RFC 9449") -> RefusedError:
    """The refusal of a proof."""
    return RefusedError(
        f"this needs a proof of the key that the study names for its coordinator: {why}",
        code="VHT-REFUSED-PROOF",
        hint=hint,
    )


def _hash_of(token: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()
