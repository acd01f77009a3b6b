"""Routes of the console. A page shows public values of the node's books and log; a form acts through ``Visits``."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from connector.console.access import add_access_page
from connector.console.quality import add_quality_page
from connector.console.sessions import Sessions
from connector.console.sources import add_sources_page
from connector.console.told import chain_of_custody, log_lines, refusals
from connector.governance.actors import Actor
from connector.node import Node
from vht_federate.errors import VhtError
from vht_federate.web import templates

__all__ = ["add_pages"]

_NAV = (
    ("/", "Now"),
    ("/datasets", "Data"),
    ("/sources", "Sources"),
    ("/quality", "Quality"),
    ("/questions", "Questions"),
    ("/access", "Access"),
    ("/log", "Evidence log"),
)
REFRESH_S = 10
PAGE_LINES = 100


class _Pages:
    """Renders pages for whoever is signed in; everyone else is sent to the log-in."""

    def __init__(self, node: Node, sessions: Sessions) -> None:
        self.node, self.sessions = node, sessions
        self._templates = templates(Path(__file__).parent / "templates", f"Node {node.settings.name}", _NAV)

    def render(self, request: Request, name: str, status: int = 200, **context: Any) -> Response:
        session = self.sessions.signed_in(request)
        actor = session.actor if session else None
        shared = {
            "node": self.node.settings.name,
            "actor": actor,
            "form_key": session.form_key if session else "",
            "may_decide": actor is not None and actor.role == "approver",
        }
        return self._templates.TemplateResponse(request, name, {**shared, **context}, status_code=status)

    def error(self, request: Request, error: VhtError) -> Response:
        return self.render(request, "error.html", status=error.http_status, error=error.envelope())

    def page(self, make: Callable[..., Response]) -> Callable[..., Response]:
        """A page for those who are signed in; a typed error becomes a page, too."""

        @wraps(make)
        def shown(request: Request, *args: Any, **kwargs: Any) -> Response:
            try:
                if self.sessions.actor(request) is None:
                    return RedirectResponse("/login", status_code=303)
                return make(request, *args, **kwargs)
            except VhtError as error:
                return self.error(request, error)

        return shown

    def acting(self, visit_id: str, request: Request, form_key: str, act: Callable[[Actor], Any]) -> Response:
        """One form: check its key and the actor's role, act, and show the visit again."""
        try:
            act(self.sessions.require_form(request, form_key).require_approver())
        except VhtError as error:
            return self.error(request, error)
        return RedirectResponse(f"/visits/{visit_id}", status_code=303)


def add_pages(app: FastAPI, node: Node, sessions: Sessions) -> None:
    """Add the console's routes to the internal application."""
    pages = _Pages(node, sessions)
    _add_log_in(app, pages)
    _add_views(app, pages)
    add_quality_page(app, pages)
    add_sources_page(app, pages)
    add_access_page(app, pages)
    _add_forms(app, pages)


def _add_views(app: FastAPI, pages: _Pages) -> None:
    node = pages.node

    @app.get("/", include_in_schema=False)
    @pages.page
    def overview(request: Request) -> Response:
        visits = node.books.visits()
        shown = pages.render(
            request,
            "overview.html",
            waiting=[visit for visit in visits if visit["state"] == "requested"],
            running=[visit for visit in visits if visit["state"] in ("approved", "ready")],
            ended=[visit for visit in visits if visit["state"] not in ("requested", "approved", "ready")][:20],
            budget=node.books.budget(),
            refusals=refusals(node.evidence, 10),
            facts=node.status(),
        )
        shown.headers["Refresh"] = str(REFRESH_S)
        return shown

    @app.get("/console", include_in_schema=False)
    def console() -> Response:
        return RedirectResponse("/", status_code=303)

    @app.get("/visits/{visit_id}", include_in_schema=False)
    @pages.page
    def visit(request: Request, visit_id: str) -> Response:
        one = node.books.visit(visit_id)
        trace = chain_of_custody(node.evidence, visit_id)
        return pages.render(request, "visit.html", visit=one, trace=trace, open=one["state"] in ("approved", "ready"))

    @app.get("/datasets", include_in_schema=False)
    @pages.page
    def datasets(request: Request) -> Response:
        return pages.render(
            request,
            "datasets.html",
            dataset=node.settings.dataset,
            summary=node.summary(),
            ingests=node.books.ingests(),
            budget=node.books.budget()["datasets"],
            catalogue_url=f"{node.settings.outward_url}/catalogue",
        )

    @app.get("/log", include_in_schema=False)
    @pages.page
    def log(request: Request, before: int | None = None) -> Response:
        lines, earlier = log_lines(node.evidence, PAGE_LINES, before)
        return pages.render(
            request, "log.html", lines=lines, earlier=earlier, head=node.evidence.head(), kid=node.key.public.kid
        )


def _add_forms(app: FastAPI, pages: _Pages) -> None:
    visits = pages.node.visits
    Key = Annotated[str, Form(max_length=100)]  # noqa: N806 - a type

    @app.post("/visits/{visit_id}/approve", include_in_schema=False)
    def approve(request: Request, visit_id: str, form_key: Key = "") -> Response:
        return pages.acting(visit_id, request, form_key, lambda actor: visits.approve(visit_id, actor))

    @app.post("/visits/{visit_id}/reject", include_in_schema=False)
    def reject(
        request: Request, visit_id: str, form_key: Key = "", reason: Annotated[str, Form(max_length=500)] = ""
    ) -> Response:
        return pages.acting(visit_id, request, form_key, lambda actor: visits.reject(visit_id, actor, reason))

    @app.post("/visits/{visit_id}/stop", include_in_schema=False)
    def stop(request: Request, visit_id: str, form_key: Key = "") -> Response:
        return pages.acting(visit_id, request, form_key, lambda actor: visits.stop(visit_id, actor))


def _add_log_in(app: FastAPI, pages: _Pages) -> None:
    sessions = pages.sessions

    def enter(request: Request, log_in: Callable[[], tuple[str, Any]]) -> Response:
        try:
            value, _ = log_in()
        except VhtError as error:
            return pages.render(request, "login.html", status=403, failed=error.message)
        answer = RedirectResponse("/", status_code=303, headers={"Cache-Control": "no-store"})
        sessions.set_cookie(answer, value)
        return answer

    @app.get("/login", include_in_schema=False)
    def log_in_page(request: Request, code: Annotated[str | None, Query(max_length=100)] = None) -> Response:
        if code is not None:  # good for one session: what a browser's history keeps of it opens nothing
            return enter(request, lambda: sessions.accounts.log_in_with_code(code))
        return pages.render(request, "login.html", failed=None)

    @app.post("/login", include_in_schema=False)
    def log_in(
        request: Request,
        name: Annotated[str, Form(max_length=100)] = "",
        password: Annotated[str, Form(max_length=1000)] = "",
    ) -> Response:
        return enter(request, lambda: sessions.accounts.log_in(name, password))

    @app.post("/logout", include_in_schema=False)
    def log_out(request: Request, form_key: Annotated[str, Form(max_length=100)] = "") -> Response:
        answer = RedirectResponse("/login", status_code=303)
        try:
            sessions.require_form(request, form_key)
            sessions.log_out(request, answer)
        except VhtError as error:
            return pages.error(request, error)
        return answer
