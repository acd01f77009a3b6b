"""The console's page on the local FHIR API: which programs may read, under which permit, and what they have read."""

from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Form, Request
from starlette.responses import RedirectResponse, Response

from connector.console.sessions import Sessions
from connector.fhir.api.operators import available, newest_events
from connector.node import Node
from vht_federate.errors import VhtError

__all__ = ["add_access_page"]

SHOWN = 200


class _Pages(Protocol):
    node: Node
    sessions: Sessions

    def page(self, make: Any) -> Any: ...

    def render(self, request: Request, name: str, status: int = 200, **context: Any) -> Response: ...

    def error(self, request: Request, error: VhtError) -> Response: ...


def add_access_page(app: FastAPI, pages: _Pages) -> None:
    api, files = pages.node.fhir_api, pages.node.files

    @app.get("/access", include_in_schema=False)
    @pages.page
    def access(request: Request, client: str | None = None, refused: bool = False) -> Response:
        clients = api.clients.all()
        chosen = next((one for one in clients if one["client"] == client), None)
        return pages.render(
            request,
            "access.html",
            clients=clients,
            events=newest_events(api, SHOWN, client=chosen["client"] if chosen else None, refused=refused),
            chosen=chosen,
            refused=refused,
            shown=SHOWN,
            base=api.base,
            available=available(),
            state=files.state,
        )

    @app.post("/access/{client}/revoke", include_in_schema=False)
    def revoke(request: Request, client: str, form_key: Annotated[str, Form(max_length=100)] = "") -> Response:
        try:
            api.clients.revoke(client, pages.sessions.require_form(request, form_key).require_approver())
        except VhtError as error:
            return pages.error(request, error)
        return RedirectResponse("/access", status_code=303)
