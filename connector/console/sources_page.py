"""The console's page on FHIR servers: where the data comes from, how the last pulls went, and pulling now."""

from typing import Annotated

from fastapi import FastAPI, Form, Request
from starlette.responses import Response

from connector.console.page_frame import Pages

__all__ = ["add_sources_page"]

REFRESH_S = 10


def add_sources_page(app: FastAPI, pages: Pages) -> None:
    node = pages.node

    @app.get("/sources", include_in_schema=False)
    @pages.page
    def sources(request: Request) -> Response:
        response = pages.render(request, "sources.html", sources=node.pulls.described(), state=node.files.state)
        response.headers["Refresh"] = str(REFRESH_S)
        return response

    @app.post("/sources/{name}/run", include_in_schema=False)
    def run(request: Request, name: str, form_key: Annotated[str, Form(max_length=100)] = "") -> Response:
        return pages.acting(request, form_key, lambda actor: node.pulls.ask(name, actor), "/sources")
