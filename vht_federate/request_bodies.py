"""Bodies of HTTP requests, counted as they are read.

What a header says of a length is a claim: a body that comes in chunks names none, and one that names both a length and
chunks (RFC 9112 section 6.3) means two things to two readers. So the latter is refused, and every other body may be
read up to a limit, whatever it claims.
"""

from typing import TYPE_CHECKING

from vht_federate.errors import InputError, VhtError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BodyLimit", "require_one_length"]


def too_large(maximum: int) -> VhtError:
    return InputError(f"the request is too large: at most {maximum} bytes", code="VHT-INPUT-SIZE")


def require_one_length(headers: "Iterable[tuple[bytes, bytes]]") -> int | None:
    """The length that a body is said to have, None for chunks. Raises InputError VHT-INPUT-FRAMING for two lengths."""
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    chunked = any(name.lower() == b"transfer-encoding" for name, _ in headers)
    if len(lengths) + chunked > 1:
        raise InputError("a request has one length: Content-Length or chunks", code="VHT-INPUT-FRAMING")
    if not lengths:
        return None
    if not lengths[0].isdigit():
        raise InputError("Content-Length is no number", code="VHT-INPUT-FRAMING")
    return int(lengths[0])


class BodyLimit:
    """ASGI middleware: no more than ``maximum`` bytes of a body reach the application, which then answers nothing.

    ``refusal`` is what answers in its place. Below the paths of ``answering`` the application answers all the same, to
    the refusal that its reading raises.
    """

    def __init__(
        self,
        app: "ASGIApp",
        maximum: int,
        refusal: "Callable[[int], VhtError]" = too_large,
        answering: tuple[str, ...] = (),
    ) -> None:
        self._app, self._maximum, self._refusal, self._answering = app, maximum, refusal, answering

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answers = any(scope["path"].startswith(path) for path in self._answering)
        try:
            if (require_one_length(scope["headers"]) or 0) > self._maximum and not answers:
                raise self._refusal(self._maximum)
        except VhtError as error:
            await _refuse(error, scope, receive, send)
            return
        read, started = 0, False
        refusal: VhtError | None = None

        async def counted() -> "Message":
            nonlocal read, refusal
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._maximum:
                refusal = self._refusal(self._maximum)
                raise refusal
            return message

        async def unless_refused(message: "Message") -> None:
            nonlocal started
            if refusal is not None and not started and not answers:
                return  # what the application says of it: the refusal is said below
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, counted, unless_refused)
        except Exception:
            if refusal is None or started:
                raise
        if refusal is not None and not started:
            await _refuse(refusal, scope, receive, send)


async def _refuse(error: VhtError, scope: "Scope", receive: "Receive", send: "Send") -> None:
    from starlette.responses import JSONResponse

    answer = JSONResponse({"error": error.envelope()}, error.http_status, {"Connection": "close"})
    await answer(scope, receive, send)
