"""What both listeners have in common: a limit on bodies, failures that say nothing; tokens, and proofs with them."""

import logging
from dataclasses import dataclass

from fastapi import FastAPI, Header, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vht_federate.errors import VhtError
from vht_federate.request_bodies import BodyLimit
from vht_federate.signing.possession import PROOF_HEADER, PresentedProof

__all__ = ["Guarded", "Presented", "bearer", "plain_app", "presented"]

log = logging.getLogger("vht.node.http")
MAXIMUM_BODY = 4 << 20


def plain_app(title: str) -> FastAPI:
    """An application without generated documentation pages, which would load scripts from elsewhere."""
    return FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)


def bearer(authorization: str | None = Header(default=None)) -> str:
    """The token of ``Authorization: Bearer …``, empty where there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


@dataclass(frozen=True)
class Presented:
    """What a request brought: the token of ``Authorization``, empty where there is none, and its proof."""

    token: str
    proof: PresentedProof


def presented(
    request: Request,
    authorization: str | None = Header(default=None),
    proof: str = Header(default="", alias=PROOF_HEADER, max_length=8_000),
) -> Presented:
    """Of ``Authorization: DPoP …`` (RFC 9449 section 7.1) or ``Bearer …``, and ``DPoP: …``."""
    scheme, _, token = (authorization or "").partition(" ")
    known = scheme.lower() in ("dpop", "bearer")
    return Presented(token.strip() if known else "", PresentedProof(request.method, request.url.path, proof))


class Guarded:
    """ASGI middleware: refuses large bodies, and turns a failure into a 500 whose cause only the node's log knows.

    ``answering``: below these paths the application says itself that a body is too large.
    """

    def __init__(self, app: ASGIApp, service: str, answering: tuple[str, ...] = ()) -> None:
        self._app, self._service = BodyLimit(app, MAXIMUM_BODY, answering=answering), service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            is_typed = isinstance(error, VhtError)
            if not is_typed:
                log.exception("a request failed", extra={"facts": {"service": self._service}})
            if not started:
                typed = error if isinstance(error, VhtError) else VhtError("internal error", hint="see node.log")
                await JSONResponse({"error": typed.envelope()}, status_code=typed.http_status)(scope, receive, send)
