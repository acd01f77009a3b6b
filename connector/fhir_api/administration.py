"""What the node's operator does about the local FHIR API: register clients, revoke them, read the access log."""

from importlib.util import find_spec
from itertools import islice
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field

from connector.fhir_api.access_log import told
from connector.fhir_api.app import fhir_app
from connector.fhir_api.client_keys import read_keys
from connector.fhir_api.service import LocalApi
from connector.governance.operator_accounts import Accounts, Actor

__all__ = ["add_fhir_api", "available", "newest_events"]

_STRICT = ConfigDict(extra="forbid", frozen=True)


class ClientRequest(BaseModel):
    model_config = _STRICT
    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")
    permit: str = Field(max_length=100_000)
    scope: str = Field(max_length=1_000)
    jwks: dict[str, Any] | None = None
    jku: str | None = Field(default=None, max_length=2_000)
    operator: str | None = Field(default=None, min_length=1, max_length=100)


class Revocation(BaseModel):
    model_config = _STRICT
    operator: str | None = Field(default=None, min_length=1, max_length=100)


def available() -> bool:
    """Are FHIR's models (the extra ``fhir``) installed, through which every answer of ours goes?"""
    return find_spec("fhir") is not None


def newest_events(
    api: LocalApi, count: int, *, client: str | None = None, refused: bool = False, raw: bool = False
) -> list[dict[str, Any]]:
    """Newest first; ``raw``: as AuditEvents."""
    matches = (
        (event, summary)
        for event in api.audit.events()
        for summary in [told(event)]
        if (client is None or summary["client"] == client) and (not refused or summary["outcome"] == "refused")
    )
    return [event if raw else summary for event, summary in islice(matches, count)]


def add_fhir_api(app: FastAPI, api: LocalApi, accounts: Accounts, who: Any) -> None:
    """Mount the API below ``/fhir`` and add the operator's routes."""
    Who = Annotated[Actor, who]  # noqa: N806 - a type

    @app.get("/api/fhir-clients")
    def clients(_: Who) -> dict[str, Any]:
        return {"clients": api.clients.all(), "base": api.base, "available": available()}

    @app.post("/api/fhir-clients", status_code=201)
    def add(actor: Who, asked: ClientRequest) -> dict[str, Any]:
        approver = accounts.as_operator(actor, asked.operator).require_approver()
        jwks = read_keys(orjson.dumps(asked.jwks)) if asked.jwks is not None else None
        return api.clients.add(asked.name, asked.permit.strip(), asked.scope, approver, jwks=jwks, jku=asked.jku)

    @app.post("/api/fhir-clients/{client}/revoke")
    def revoke(actor: Who, client: str, asked: Revocation | None = None) -> dict[str, Any]:
        name = asked.operator if asked else None
        return api.clients.revoke(client, accounts.as_operator(actor, name).require_approver())

    @app.get("/api/audit-events")
    def events(
        _: Who,
        count: Annotated[int, Query(ge=1, le=10_000)] = 100,
        client: str | None = None,
        refused: bool = False,
        raw: bool = False,
    ) -> dict[str, Any]:
        return {"events": newest_events(api, count, client=client, refused=refused, raw=raw)}

    if available():
        app.mount("/fhir", fhir_app(api))
