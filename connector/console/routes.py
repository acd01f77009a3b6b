"""Routes of the console. A page shows public values of the node's database and log; a form acts through ``Visits``."""

from typing import Annotated

from fastapi import FastAPI, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from connector.console.fhir_api_page import add_access_page
from connector.console.log_lines import chain_of_custody, log_lines, refusals
from connector.console.page_frame import Pages
from connector.console.quality_page import add_quality_page
from connector.console.sessions import Sessions
from connector.console.sources_page import add_sources_page
from connector.governance.operator_accounts import Actor
from connector.node import Node
from vht_federate.errors import VhtError

__all__ = ["add_pages"]

REFRESH_S = 10
PAGE_LINES = 100


def add_pages(app: FastAPI, node: Node, sessions: Sessions) -> None:
    """Add the console's routes to the internal application."""
    pages = Pages(node, sessions)
    _add_log_in(app, pages)
    _add_views(app, pages)
    add_quality_page(app, pages)
    add_sources_page(app, pages)
    add_access_page(app, pages)
    _add_forms(app, pages)


def _add_views(app: FastAPI, pages: Pages) -> None:
    node = pages.node

    @app.get("/", include_in_schema=False)
    @pages.page
    def overview(request: Request) -> Response:
        visits = node.overview.visits()
        response = pages.render(
            request,
            "overview.html",
            waiting=[visit for visit in visits if visit["state"] == "requested"],
            running=[visit for visit in visits if visit["state"] in ("approved", "ready")],
            ended=[visit for visit in visits if visit["state"] not in ("requested", "approved", "ready")][:20],
            budget=node.overview.budget(),
            refusals=refusals(node.evidence, 10),
            facts=node.status(),
        )
        response.headers["Refresh"] = str(REFRESH_S)
        return response

    @app.get("/console", include_in_schema=False)
    def console() -> Response:
        return RedirectResponse("/", status_code=303)

    @app.get("/visits/{visit_id}", include_in_schema=False)
    @pages.page
    def visit(request: Request, visit_id: str) -> Response:
        details = node.visit(visit_id)
        trace = chain_of_custody(node.evidence, visit_id)
        return pages.render(
            request, "visit.html", visit=details, trace=trace, open=details["state"] in ("approved", "ready")
        )

    @app.get("/datasets", include_in_schema=False)
    @pages.page
    def datasets(request: Request) -> Response:
        return pages.render(
            request,
            "datasets.html",
            dataset=node.settings.dataset,
            summary=node.summary(),
            ingests=node.overview.ingests(),
            budget=node.overview.budget()["datasets"],
            catalogue_url=f"{node.settings.outward_url}/catalogue",
        )

    @app.get("/log", include_in_schema=False)
    @pages.page
    def log(request: Request, before: int | None = None) -> Response:
        lines, earlier = log_lines(node.evidence, PAGE_LINES, before)
        return pages.render(
            request, "log.html", lines=lines, earlier=earlier, head=node.evidence.head(), kid=node.key.public.kid
        )


def _add_forms(app: FastAPI, pages: Pages) -> None:
    visits = pages.node.visits
    Key = Annotated[str, Form(max_length=100)]  # noqa: N806 - a type

    @app.post("/visits/{visit_id}/approve", include_in_schema=False)
    def approve(
        request: Request, visit_id: str, form_key: Key = "", despite_outcome: Annotated[bool, Form()] = False
    ) -> Response:
        def decide(actor: Actor) -> object:
            return visits.approve(visit_id, actor, despite_outcome=despite_outcome)

        return pages.acting(request, form_key, decide, f"/visits/{visit_id}")

    @app.post("/visits/{visit_id}/reject", include_in_schema=False)
    def reject(
        request: Request, visit_id: str, form_key: Key = "", reason: Annotated[str, Form(max_length=500)] = ""
    ) -> Response:
        return pages.acting(
            request, form_key, lambda actor: visits.reject(visit_id, actor, reason), f"/visits/{visit_id}"
        )

    @app.post("/visits/{visit_id}/stop", include_in_schema=False)
    def stop(
        request: Request, visit_id: str, form_key: Key = "", reason: Annotated[str, Form(max_length=500)] = ""
    ) -> Response:
        return pages.acting(
            request, form_key, lambda actor: visits.stop(visit_id, actor, reason), f"/visits/{visit_id}"
        )


def _add_log_in(app: FastAPI, pages: Pages) -> None:
    sessions = pages.sessions

    def not_entered(request: Request, error: VhtError) -> Response:
        answer = pages.render(request, "login.html", status=error.http_status, failed=error.message)
        answer.headers.update(error.headers())
        return answer

    def entered(value: str) -> Response:
        answer = RedirectResponse("/", status_code=303, headers={"Cache-Control": "no-store"})
        sessions.set_cookie(answer, value)
        return answer

    @app.get("/login", include_in_schema=False)
    def log_in_page(request: Request, code: Annotated[str | None, Query(max_length=100)] = None) -> Response:
        asked_about = request.scope.get("vht.head", False)  # a HEAD opens no session, and uses no link up
        if code is not None and not asked_about:  # good once: what a browser's history keeps of it opens nothing
            try:
                value, _ = sessions.accounts.log_in_with_code(code)
            except VhtError as error:
                return not_entered(request, error)
            return entered(value)
        return pages.render(request, "login.html", failed=None)

    @app.post("/login", include_in_schema=False)
    async def log_in(
        request: Request,
        name: Annotated[str, Form(max_length=100)] = "",
        password: Annotated[str, Form(max_length=1000)] = "",
    ) -> Response:
        try:
            return entered(await sessions.log_in(request, name, password))
        except VhtError as error:
            return not_entered(request, error)

    @app.post("/logout", include_in_schema=False)
    def log_out(request: Request, form_key: Annotated[str, Form(max_length=100)] = "") -> Response:
        answer = RedirectResponse("/login", status_code=303)
        try:
            sessions.require_form(request, form_key)
            sessions.log_out(request, answer)
        except VhtError as error:
            return pages.error(request, error)
        return answer
