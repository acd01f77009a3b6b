"""What the console's pages share: the frame around each, who may see it, and what a form must bring."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.responses import RedirectResponse, Response

from connector.console.sessions import Sessions
from connector.governance.operator_accounts import Actor
from connector.node import Node
from vht_federate.errors import VhtError
from vht_federate.web import templates

__all__ = ["Pages"]

_NAV = (
    ("/", "Now"),
    ("/datasets", "Data"),
    ("/sources", "Sources"),
    ("/quality", "Quality"),
    ("/questions", "Questions"),
    ("/access", "Access"),
    ("/log", "Evidence log"),
)


class Pages:
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

    def acting(self, request: Request, form_key: str, act: Callable[[Actor], Any], back: str) -> Response:
        """One form: check its key and the actor's role, act, and go ``back`` to a page."""
        try:
            act(self.sessions.require_form(request, form_key).require_approver())
        except VhtError as error:
            return self.error(request, error)
        return RedirectResponse(back, status_code=303)
