"""The console's page on the local FHIR API: which programs may read, under which permit, and what they have read."""

from typing import Annotated

from fastapi import FastAPI, Form, Request
from starlette.responses import Response

from connector.console.page_frame import Pages
from connector.fhir_api.administration import available, newest_events

__all__ = ["add_access_page"]

SHOWN = 200


def add_access_page(app: FastAPI, pages: Pages) -> None:
    api, files = pages.node.fhir_api, pages.node.files

    @app.get("/access", include_in_schema=False)
    @pages.page
    def access(request: Request, client: str | None = None, refused: bool = False) -> Response:
        clients = api.clients.all()
        chosen = next((entry for entry in clients if entry["client"] == client), None)
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
        return pages.acting(request, form_key, lambda actor: api.clients.revoke(client, actor), "/access")
