"""Console sessions over HTTP: one strict cookie per node, and a key that every form must bring back."""

import hmac

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from connector.console.log_in_delays import LogInDelays
from connector.governance.operator_accounts import SESSION_HOURS, Accounts, Actor, SignedIn
from connector.http_guards import bearer
from vht_federate.errors import RefusedError

__all__ = ["Sessions"]


class Sessions:
    """Cookies of one node. They carry the node's name, because a browser shares cookies between ports of a host."""

    def __init__(self, accounts: Accounts, node: str, delays: LogInDelays | None = None) -> None:
        self.accounts, self._cookie = accounts, f"vht-node-{node}"
        self.delays = delays or LogInDelays()

    async def log_in(self, request: Request, name: str, password: str) -> str:
        """The cookie's value, after the wait that failures before have earned.

        Raises RefusedError VHT-REFUSED-LOGIN, UnavailableError VHT-UNAVAILABLE-LOGIN.
        """
        address = request.client.host if request.client else ""
        async with self.delays.attempt(name, address):
            try:
                value, _ = await run_in_threadpool(self.accounts.log_in, name, password)
            except RefusedError:
                self.delays.failed(name, address)
                raise
        self.delays.succeeded(name, address)
        return value

    def signed_in(self, request: Request) -> SignedIn | None:
        value = request.cookies.get(self._cookie)
        return self.accounts.of_cookie(value) if value else None

    def actor(self, request: Request) -> Actor | None:
        """From the operator token or from a session; None for neither. Raises RefusedError for a wrong token."""
        token = bearer(request.headers.get("authorization"))
        if token:
            return self.accounts.of_token(token)
        session = self.signed_in(request)
        return session.actor if session else None

    def require_token(self, request: Request) -> None:
        """The API changes something only for a bearer token: a browser's cookie is not enough."""
        if not bearer(request.headers.get("authorization")):
            raise RefusedError("the API takes the operator token only", code="VHT-REFUSED-LOGIN")

    def require_form(self, request: Request, form_key: str) -> Actor:
        """The actor of a form that this session was shown. Raises RefusedError VHT-REFUSED-FORM or -LOGIN."""
        session = self.signed_in(request)
        if session is None:
            raise RefusedError("log in first", code="VHT-REFUSED-LOGIN", hint="your session may have ended")
        if not hmac.compare_digest(session.form_key.encode(), form_key.encode()):
            raise RefusedError("this form is not from your session", code="VHT-REFUSED-FORM", hint="reload the page")
        return session.actor

    def set_cookie(self, response: Response, value: str) -> None:
        response.set_cookie(
            self._cookie, value, max_age=SESSION_HOURS * 3600, secure=True, httponly=True, samesite="strict", path="/"
        )

    def log_out(self, request: Request, response: Response) -> None:
        value = request.cookies.get(self._cookie)
        if value:
            self.accounts.log_out(value)
        response.delete_cookie(self._cookie, path="/")
