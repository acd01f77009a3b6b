"""SMART Backend Services: an access token for a signed assertion (SMART App Launch 2.2, backend-services;
RFC 7523 client assertions with RS384 or ES384).

Each assertion lives four minutes and is sent once: an authorization server refuses a jti that it has seen.
"""

import base64
import hashlib
import uuid
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from connector.fhir.sources.allowed_origins import Guard
from connector.fhir.sources.response_body import body_of
from connector.fhir.sources.retry import Retries, RetryPolicy, retry_after_s
from connector.fhir.sources.settings import AuthorizationSettings
from vht_federate.errors import InputError, UnavailableError
from vht_federate.signing.canonical import canonical_bytes

__all__ = ["BackendKey", "Tokens"]

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
LIFETIME = timedelta(minutes=4)
RENEW_BEFORE_S = 30.0
UNKNOWN_LIFETIME_S = 300.0
ANSWER_LIMIT = 64 << 10  # bytes of a discovery document, or of a token's answer
RSA_BITS = 2048
# RFC 6749, 5.2: what a token endpoint may say; nothing else of its answer is repeated.
_OAUTH_ERRORS = frozenset(
    {"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type"}
    | {"invalid_scope"}
)


class BackendKey:
    """The private key that we sign assertions with, and its public half as the server must know it."""

    def __init__(self, private: RSAPrivateKey | EllipticCurvePrivateKey, kid: str | None = None) -> None:
        self._private = private
        self.algorithm = "RS384" if isinstance(private, RSAPrivateKey) else "ES384"
        public = private.public_key()
        jwk = (
            ECAlgorithm.to_jwk(public, as_dict=True)
            if isinstance(public, EllipticCurvePublicKey)
            else RSAAlgorithm.to_jwk(public, as_dict=True)
        )
        members = ("crv", "kty", "x", "y") if jwk["kty"] == "EC" else ("e", "kty", "n")
        required = {name: jwk[name] for name in members}
        self.kid = kid or _thumbprint(required)
        self.jwk: dict[str, Any] = {**required, "kid": self.kid, "alg": self.algorithm, "use": "sig"}

    @classmethod
    def read(cls, path: Path, kid: str | None = None) -> "BackendKey":
        """Raises InputError VHT-INPUT-SOURCE-KEY for a file that holds neither an RSA nor a P-384 private key."""
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path.name} holds no private key in PEM", code="VHT-INPUT-SOURCE-KEY") from error
        if isinstance(private, RSAPrivateKey) and private.key_size >= RSA_BITS:
            return cls(private, kid)
        if isinstance(private, EllipticCurvePrivateKey) and isinstance(private.curve, SECP384R1):
            return cls(private, kid)
        raise InputError(
            f"{path.name} is no key for RS384 or ES384",
            code="VHT-INPUT-SOURCE-KEY",
            hint="openssl ecparam -name secp384r1 -genkey -noout -out source.key",
        )

    def sign(self, claims: dict[str, Any], jku: str | None) -> str:
        headers = {"kid": self.kid, "typ": "JWT"} | ({"jku": jku} if jku else {})
        return jwt.encode(claims, self._private, algorithm=self.algorithm, headers=headers)


def _thumbprint(required: dict[str, Any]) -> str:
    """RFC 7638."""
    return base64.urlsafe_b64encode(hashlib.sha256(canonical_bytes(required)).digest()).rstrip(b"=").decode()


class Tokens:
    """The access token in force; a new one shortly before it ends, or where the server no longer takes it."""

    def __init__(
        self,
        http: httpx.Client,
        guard: Guard,
        base: str,
        settings: AuthorizationSettings,
        pace: RetryPolicy,
        attempts: int,
    ) -> None:
        self._http, self._guard, self._base, self._settings = http, guard, base, settings
        self._pace, self._attempts = pace, attempts
        self._key = BackendKey.read(settings.key, settings.kid)
        self._url = settings.token_url
        self._token, self._ends_at = "", 0.0

    def bearer(self) -> str:
        if not self._token or self._pace.clock() >= self._ends_at:
            self._renew()
        return self._token

    def forget(self) -> None:
        """The server refused the token in force."""
        self._token = ""

    def _renew(self) -> None:
        answer = self._answer(token=True)
        try:
            body = orjson.loads(answer)
            token, lifetime = body["access_token"], float(body.get("expires_in", UNKNOWN_LIFETIME_S))
            if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _unusable("its answer holds no token") from None
        self._token, self._ends_at = token, self._pace.clock() + max(lifetime - RENEW_BEFORE_S, lifetime / 2)

    def _answer(self, *, token: bool) -> bytes:
        """What the token endpoint answers, or (not ``token``) the discovery document."""
        patience = Retries(self._pace, self._attempts)
        while True:
            try:
                with self._ask_token() if token else self._http.stream("GET", self._discovery_url()) as answer:
                    status, headers = answer.status_code, answer.headers
                    passing = status in (408, 429) or status >= 500
                    content = b"" if passing else body_of(answer, self._pace, limit=ANSWER_LIMIT)
            except httpx.TransportError as error:
                patience.again(f"its authorization server fails ({type(error).__name__})")
                continue
            if passing:
                wait = retry_after_s(headers.get("Retry-After"), self._pace.now())
                patience.again(f"its authorization server answers {status}", wait)
            elif status == 200:
                return content
            else:
                raise _unusable(_said(status, content))

    def _ask_token(self) -> AbstractContextManager[httpx.Response]:
        url = self._token_url()
        now = self._pace.now()
        claims = {
            "iss": self._settings.client_id,
            "sub": self._settings.client_id,
            "aud": url,
            "iat": now,
            "exp": now + LIFETIME,
            "jti": str(uuid.uuid4()),
        }
        form = {
            "grant_type": "client_credentials",
            "scope": self._settings.scope,
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": self._key.sign(claims, self._settings.jku),
        }
        return self._http.stream("POST", url, data=form, headers={"Accept": "application/json"})

    def _discovery_url(self) -> str:
        return self._guard.check(f"{self._base}/.well-known/smart-configuration")

    def _token_url(self) -> str:
        if self._url is None:
            try:
                self._url = str(orjson.loads(self._answer(token=False))["token_endpoint"])
            except (ValueError, KeyError, TypeError):
                raise _unusable("its smart-configuration names no token_endpoint") from None
        return self._guard.check(self._url)


def _said(status: int, content: bytes) -> str:
    try:
        word = orjson.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        word = ""
    return f"{status} {word}" if word in _OAUTH_ERRORS else str(status)


def _unusable(why: str) -> UnavailableError:
    return UnavailableError(
        f"the FHIR server's authorization gives no token: {why}",
        code="VHT-UNAVAILABLE-SOURCE-TOKEN",
        hint="is our public key registered there, for this client_id and this scope?",
    )
