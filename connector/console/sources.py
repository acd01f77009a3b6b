"""The console's page on FHIR servers: where the data comes from, how the last pulls went, and pulling now."""

from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Form, Request
from starlette.responses import RedirectResponse, Response

from connector.console.sessions import Sessions
from connector.node import Node
from vht_federate.errors import VhtError

__all__ = ["add_sources_page"]

REFRESH_S = 10


class _Pages(Protocol):
    node: Node
    sessions: Sessions

    def page(self, make: Any) -> Any: ...

    def render(self, request: Request, name: str, status: int = 200, **context: Any) -> Response: ...

    def error(self, request: Request, error: VhtError) -> Response: ...


def add_sources_page(app: FastAPI, pages: _Pages) -> None:
    node = pages.node

    @app.get("/sources", include_in_schema=False)
    @pages.page
    def sources(request: Request) -> Response:
        shown = pages.render(request, "sources.html", sources=node.pulls.described(), state=node.files.state)
        shown.headers["Refresh"] = str(REFRESH_S)
        return shown

    @app.post("/sources/{name}/run", include_in_schema=False)
    def run(request: Request, name: str, form_key: Annotated[str, Form(max_length=100)] = "") -> Response:
        try:
            actor = pages.sessions.require_form(request, form_key).require_approver()
            node.pulls.ask(name, actor)
        except VhtError as error:
            return pages.error(request, error)
        return RedirectResponse("/sources", status_code=303)
