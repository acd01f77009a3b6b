"""The issuer's HTTPS service: its public key, the signed status list, and the public register (Article 57(1)(j))."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from vht_federate.authority.store import Register, public_record
from vht_federate.domain.permit import STATUS_TYP
from vht_federate.serving import answer_typed_errors
from vht_federate.signing.keys import SigningKey

__all__ = ["build_app"]


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
    def status_list() -> PlainTextResponse:
        status = register.status_list(hdab, clock(), status_validity_s)
        return PlainTextResponse(key.sign(status.claims(), typ=STATUS_TYP), headers={"Cache-Control": "no-store"})

    @app.get("/permits")
    def permits() -> dict[str, Any]:
        now = clock()
        return {"permits": [public_record(item, now) for item in register.permits()]}

    return app
