"""The issuer's HTTPS service: its public key, the signed status list, and the public register (Article 57(1)(j)).

It also keeps the newest head of the evidence log of each node that asks for the list, and shows it to that node: an
older copy of a node's state is noticed at its next decision.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import FastAPI, Header
from fastapi.responses import PlainTextResponse
from sqlalchemy.exc import OperationalError

from vht_federate.authority.store import Register, public_record
from vht_federate.domain.log_head import HEADER, LARGEST, QUERY_TYP, read_log_state
from vht_federate.domain.permit import STATUS_TYP
from vht_federate.errors import InputError, VerificationError
from vht_federate.serving import answer_typed_errors
from vht_federate.signing.keys import PublicKey, SigningKey

__all__ = ["build_app"]

log = logging.getLogger("vht.authority")


def build_app(
    register: Register, key: SigningKey, *, hdab: str, status_validity_s: float, clock: Callable[[], datetime]
) -> FastAPI:
    """The application. Every answer is computed from ``register``, so that a revocation counts at once."""
    app = answer_typed_errors(FastAPI(title="Permit issuer", docs_url=None, redoc_url=None, openapi_url=None))

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "service": "authority"}

    @app.get("/keys")
    def keys() -> dict[str, Any]:
        return {"keys": [key.public.jwk()]}

    @app.get("/status-list")
    def status_list(
        vht_log_head: Annotated[str | None, Header(max_length=LARGEST)] = None,
        vht_evidence_key: Annotated[str | None, Header(max_length=64)] = None,
    ) -> PlainTextResponse:
        """With the newest head of its evidence log, a node is told the newest that was kept here before."""
        status = register.status_list(hdab, clock(), status_validity_s)
        headers = {"Cache-Control": "no-store"}
        if vht_log_head and vht_evidence_key and (known := _exchanged(register, vht_evidence_key, vht_log_head)):
            headers[HEADER] = known
        return PlainTextResponse(key.sign(status.claims(), typ=STATUS_TYP), headers=headers)

    @app.get("/permits")
    def permits() -> dict[str, Any]:
        now = clock()
        return {"permits": [public_record(item, now) for item in register.permits()]}

    return app


def _exchanged(register: Register, x: str, token: str) -> str | None:
    """The newest head kept of the log that key ``x`` signs, for whoever holds that key; then ``token`` is kept."""
    try:
        key = PublicKey.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": x})
    except InputError:
        return None
    state = read_log_state(key, token)
    if state is None and not _asks(key, token):
        return None
    known = register.newest_head(key.kid)
    if state is not None:
        try:
            register.keep_head(key.kid, state.size, token)
        except OperationalError:  # a full disk, say: the status list goes out all the same
            log.exception("the head of an evidence log could not be kept")
    return known


def _asks(key: PublicKey, token: str) -> bool:
    try:
        key.verify(token, typ=QUERY_TYP)
    except VerificationError:
        return False
    return True
