"""The token endpoint of SMART Backend Services: a signed assertion buys a short-lived opaque access token.

The assertion (RFC 7523, private_key_jwt) is signed with RS384 or ES384 by a key of the client's registered set, names
this endpoint as its audience, ends at most five minutes from now, and is taken once, across restarts. Refusals are
RFC 6749's (5.2) error objects; they tell nobody whether a client exists.
"""

import hashlib
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from connector.fhir_api.client_keys import ALGORITHMS, fetch_keys, verifying_key
from connector.fhir_api.limits import Limits
from connector.governance.fhir_clients import Clients
from connector.governance.smart_scopes import granted
from connector.store.models import FhirAssertionRow, FhirClientRow
from vht_federate.domain.permit import Permit
from vht_federate.errors import InputError, RefusedError, VhtError
from vht_federate.signing.keys import require_readable_in_one_way

__all__ = ["ASSERTION_TYPE", "Access", "Asked", "Tokens", "oauth_error"]

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_LONGEST_JTI = 512


@dataclass(frozen=True)
class Access:
    """What a request may do: the client, the resource types of its token, its permit as judged a moment ago."""

    client: FhirClientRow
    types: frozenset[str]
    permit: Permit


@dataclass(frozen=True)
class Asked:
    """A token request that ``client``, revoked or not, signed. Nothing else of it was judged."""

    client: FhirClientRow
    claims: dict[str, Any]
    scope: str


@dataclass(frozen=True)
class _Held:
    client_id: str
    types: frozenset[str]
    ends: datetime


@dataclass
class Tokens:
    """Access tokens of one node; they do not survive its process."""

    clients: Clients
    url: str
    ca: Path
    limits: Limits
    clock: Callable[[], datetime]
    _held: dict[str, _Held] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, form: Mapping[str, str]) -> Asked:
        """Who signed a token request. Raises InputError, RefusedError where nobody can tell."""
        if form.get("grant_type") != "client_credentials":
            raise InputError("the grant type is client_credentials", code="VHT-INPUT-GRANT")
        if form.get("client_assertion_type") != ASSERTION_TYPE or not form.get("client_assertion"):
            raise InputError("a signed client assertion is missing", code="VHT-INPUT-ASSERTION")
        client, claims = self._signed(form["client_assertion"])
        return Asked(client, claims, form.get("scope", ""))

    def grant(self, asked: Asked) -> dict[str, Any]:
        """The answer to a token request. Raises InputError, RefusedError, PermitError, RevokedError."""
        client = asked.client
        if client.revoked_at is not None:
            raise _unknown()
        self._take(client, asked.claims)
        self.clients.permit_of(client)
        types = granted(client.scope, asked.scope)
        if not types:
            raise RefusedError("this client may not have what it asks for", code="VHT-REFUSED-SCOPE")
        return self._issue(client, types)

    def holder(self, token: str) -> FhirClientRow | None:
        """Whom ``token`` was given to, whether it opens anything still or not."""
        with self._guard:
            held = self._held.get(_digest(token))
        return self.clients.known(held.client_id) if held else None

    def access(self, token: str) -> Access:
        """What ``token`` opens now. Raises RefusedError VHT-REFUSED-TOKEN, PermitError or RevokedError."""
        with self._guard:
            held = self._held.get(_digest(token))
        client = self.clients.get(held.client_id) if held and self.clock() < held.ends else None
        if held is None or client is None:
            raise RefusedError("a valid access token is needed", code="VHT-REFUSED-TOKEN")
        return Access(client, held.types, self.clients.permit_of(client))

    def _issue(self, client: FhirClientRow, types: frozenset[str]) -> dict[str, Any]:
        from connector.governance.smart_scopes import spelled

        token, now = secrets.token_urlsafe(32), self.clock()
        with self.clients.database.write() as session:
            row = session.get(FhirClientRow, client.id)
            if row is not None:
                row.used_at = now
        with self._guard:
            self._held = {digest: held for digest, held in self._held.items() if now < held.ends}
            if len(self._held) >= self.limits.tokens:
                raise RefusedError("too many tokens are in force", code="VHT-REFUSED-RATE")
            self._held[_digest(token)] = _Held(client.id, types, now + timedelta(seconds=self.limits.token_s))
        return {
            "access_token": token,
            "token_type": "bearer",
            "expires_in": self.limits.token_s,
            "scope": spelled(types),
        }

    # --- assertions ---------------------------------------------------------------------------------------------

    def _signed(self, assertion: str) -> tuple[FhirClientRow, dict[str, Any]]:
        """Whose registered key signed the assertion, and its claims."""
        try:
            require_readable_in_one_way(assertion)
            header = jwt.get_unverified_header(assertion)
            claims = jwt.decode(assertion, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError) as error:
            raise InputError("the client assertion is no JWT", code="VHT-INPUT-ASSERTION") from error
        if header.get("alg") not in ALGORITHMS:
            raise RefusedError("an assertion is signed with RS384 or ES384", code="VHT-REFUSED-ASSERTION-ALGORITHM")
        issuer = claims.get("iss")
        client = self.clients.known(issuer) if isinstance(issuer, str) else None
        if client is None or claims.get("sub") != issuer:
            raise _unknown()
        key = verifying_key(self._keys(client, header.get("jku")), header.get("kid"), header["alg"])
        if key is None:
            raise _unknown()
        return client, _verified(assertion, key, header["alg"])

    def _keys(self, client: FhirClientRow, address: object) -> dict[str, Any]:
        """Keys come from what was registered: an address in the token counts where it is that one, and never else.

        Nobody's key set is fetched once the client is revoked.
        """
        if address is not None and address != client.jku:
            raise RefusedError("this key set's address was not registered", code="VHT-REFUSED-ASSERTION-JKU")
        if client.jwks is not None:
            return client.jwks
        if client.revoked_at is not None:
            raise _unknown()
        return fetch_keys(str(client.jku), self.ca)

    def _take(self, client: FhirClientRow, claims: dict[str, Any]) -> None:
        """Judge the assertion's audience and times, and remember it until it would have ended."""
        audience = claims["aud"]
        if self.url not in (audience if isinstance(audience, list) else [audience]):
            raise RefusedError(
                "the assertion is meant for another token endpoint", code="VHT-REFUSED-ASSERTION-AUDIENCE"
            )
        now = self.clock()
        ends = _moment(claims["exp"])
        begins = _moment(claims["nbf"]) if "nbf" in claims else now
        if ends <= now or begins > now + timedelta(seconds=self.limits.assertion_s):
            raise RefusedError("the assertion is not valid now", code="VHT-REFUSED-ASSERTION-EXPIRY")
        if ends > now + timedelta(seconds=self.limits.assertion_s):
            raise RefusedError(
                f"an assertion ends at most {self.limits.assertion_s} seconds from now",
                code="VHT-REFUSED-ASSERTION-EXPIRY",
            )
        jti = claims["jti"]
        if not isinstance(jti, str) or not 0 < len(jti) <= _LONGEST_JTI:
            raise InputError("the assertion's jti is a short text", code="VHT-INPUT-ASSERTION")
        try:
            with self.clients.database.write() as session:
                session.execute(delete(FhirAssertionRow).where(FhirAssertionRow.expires_at < now))
                session.add(FhirAssertionRow(client_id=client.id, jti_sha256=_digest(jti), expires_at=ends))
        except IntegrityError as error:
            raise RefusedError("this assertion was used before", code="VHT-REFUSED-ASSERTION-REPLAY") from error


def _verified(assertion: str, key: Any, algorithm: str) -> dict[str, Any]:
    """The claims, all there and truly signed. Their audience and times are judged when the token is granted."""
    try:
        claims: dict[str, Any] = jwt.decode(
            assertion,
            key,
            algorithms=[algorithm],
            options={
                "require": ["exp", "iss", "sub", "aud", "jti"],
                "verify_aud": False,
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
    except jwt.PyJWTError as error:
        raise _unknown() from error
    return claims


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _moment(seconds: Any) -> datetime:
    try:
        return datetime.fromtimestamp(float(seconds), UTC)
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise InputError("a time of the assertion is no number", code="VHT-INPUT-ASSERTION") from error


def _unknown() -> RefusedError:
    return RefusedError("no registered client signed this assertion", code="VHT-REFUSED-CLIENT")


def oauth_error(error: VhtError) -> dict[str, str]:
    """RFC 6749, 5.2: our code and message are the description; nothing of the request is repeated."""
    error_codes = {"VHT-INPUT-GRANT": "unsupported_grant_type", "VHT-REFUSED-SCOPE": "invalid_scope"}
    error_code = error_codes.get(error.code)
    if error_code is None:
        error_code = "invalid_request" if isinstance(error, InputError) else "invalid_client"
        if error.code.startswith("VHT-PERMIT"):
            error_code = "unauthorized_client"
    return {"error": error_code, "error_description": f"{error.code}: {error.message}"}
