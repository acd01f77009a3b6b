"""Jinja2 templates with strict escaping, the style sheet as a route, and the security headers of every answer.

A page extends ``base.html`` and fills the blocks ``title``, ``lead`` and ``content``. An undefined name in a
template is an error, never an empty string: a page that forgets a number must not look like one that has none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vht_federate.text import counted, moment_text

__all__ = ["CONTENT_SECURITY_POLICY", "SecurityHeaders", "install", "stylesheet", "templates"]

_HERE = Path(__file__).parent
STYLESHEET_PATH = "/static/style.css"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def _number(value: float | int | None, digits: int = 3) -> str:
    """Integers with thousands separators, floats with ``digits`` decimals, nothing as an en dash."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def _short(value: str | None, length: int = 12) -> str:
    """The first characters of a digest; the page carries the whole in the title attribute."""
    return "–" if not value else value if len(value) <= length else value[:length] + "…"


def _size(value: int) -> str:
    """Bytes for people."""
    amount, unit = float(value), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def templates(package_dir: Path, site: str, nav: Sequence[tuple[str, str]]) -> Jinja2Templates:
    """Templates of ``package_dir`` over the shared base.

    ``site`` is the name in the header; ``nav`` lists ``(href, label)``. Filters: ``number``, ``short``, ``moment``,
    ``size``, and ``counted("hospital")`` for a number with its noun.
    """
    environment = Environment(
        loader=ChoiceLoader([FileSystemLoader(package_dir), FileSystemLoader(_HERE / "templates")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, short=_short, moment=moment_text, size=_size, counted=counted)
    shared: dict[str, Any] = {"site": site, "nav": tuple(nav), "stylesheet": STYLESHEET_PATH}
    environment.globals.update(shared)
    return Jinja2Templates(env=environment)


def stylesheet() -> Response:
    """The shared style sheet."""
    return Response((_HERE / "style.css").read_bytes(), media_type="text/css; charset=utf-8")


class SecurityHeaders:
    """ASGI middleware: a content security policy without scripts, no sniffing, no referrer; pages are not cached."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                if headers.get("content-type", "").startswith("text/html"):
                    headers["Cache-Control"] = "no-store"
            await send(message)

        await self._app(scope, receive, secured)


class HeadAnswers:
    """ASGI middleware: HEAD is answered as GET would be, without the content (RFC 9110, section 9.3.2).

    ``scope["vht.head"]`` is true then, for a page whose GET uses something up.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_content(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET", "vht.head": True}, receive, without_content)


def install(app: FastAPI) -> None:
    """Serve the style sheet from ``app``, put the security headers on all its answers, and answer HEAD."""
    app.add_api_route(STYLESHEET_PATH, stylesheet, methods=["GET"], include_in_schema=False)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(HeadAnswers)
