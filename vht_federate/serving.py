"""Serve one or several FastAPI applications over TLS in one process, and answer typed errors as JSON.

Every error body is ``{"error": {code, message, hint}}``; FastAPI's own 404, 405, 422 and 500 are mapped to it, and
none of them repeats what the client sent. FastAPI and uvicorn are loaded by whoever serves, not for a port.
"""

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vht_federate.errors import InputError, UnavailableError, VhtError
from vht_federate.tcp_ports import LOOPBACK, bind_error, cannot_listen

if TYPE_CHECKING:
    import asyncio

    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse

__all__ = [
    "Listener",
    "answer_typed_errors",
    "await_ready",
    "require_free",
    "serve",
]

POLL_S = 0.25
PATIENCE_S = 20.0
KEEP_ALIVE_S = 30  # longer than clients keep a connection at rest: who closes first decides whether a request is lost


@dataclass(frozen=True)
class Listener:
    """One address of one application. ``certificate``/``key`` are PEM files; None serves plain HTTP (tests).

    ``threads`` is how many of its requests may be at work in threads at once; the others wait.
    """

    app: "FastAPI"
    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    threads: int = 40


def require_free(port: int, *, host: str = LOOPBACK, patience_s: float | None = None) -> None:
    """For a port that a child process will bind. A predecessor that is ending has ``patience_s`` (20 s) to let go.

    Raises UnavailableError VHT-UNAVAILABLE-PORT, VHT-UNAVAILABLE-ADDRESS.
    """
    end = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
    while error := bind_error(host, port, reuse=True):  # as the process does that will bind it
        if time.monotonic() >= end:
            raise cannot_listen(host, port, error)
        time.sleep(POLL_S)


def await_ready(ready: Callable[[], bool], *, wait_s: float, what: str) -> None:
    """Poll ``ready()`` for up to ``wait_s``; 0 asks nothing. Raises UnavailableError VHT-UNAVAILABLE-STARTING."""
    end = time.monotonic() + wait_s
    while wait_s and not ready():
        if time.monotonic() >= end:
            raise UnavailableError(
                f"{what} was not ready after {wait_s:g} s", code="VHT-UNAVAILABLE-STARTING", hint="its output says why"
            )
        time.sleep(POLL_S)


def answer_typed_errors(app: "FastAPI") -> "FastAPI":
    """Map every failure of ``app`` to the error envelope."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse

    def body(error: VhtError, status: int) -> "JSONResponse":
        return JSONResponse({"error": error.envelope()}, status_code=status, headers=error.headers())

    @app.exception_handler(VhtError)
    async def typed(_: "Request", error: VhtError) -> "JSONResponse":
        return body(error, error.http_status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: "Request", error: "RequestValidationError") -> "JSONResponse":
        places = sorted({".".join(str(part) for part in item["loc"]) for item in error.errors()})
        return body(InputError(f"the request does not fit its schema at: {', '.join(places)}"), 400)

    @app.exception_handler(HTTPException)
    async def http(_: "Request", error: "HTTPException") -> "JSONResponse":
        code = {404: "VHT-INPUT-NOT-FOUND", 405: "VHT-INPUT-METHOD"}.get(error.status_code, "VHT-INPUT")
        return body(InputError(str(error.detail), code=code), error.status_code)

    @app.exception_handler(Exception)
    async def unexpected(_: "Request", error: Exception) -> "JSONResponse":
        return body(VhtError(f"internal error ({type(error).__name__})", hint="see the log of this process"), 500)

    return app


def _server(listener: Listener) -> "uvicorn.Server":
    """A server whose signals are handled once, by ``serve``."""
    import uvicorn

    class Server(uvicorn.Server):
        def capture_signals(self):  # type: ignore[no-untyped-def]
            return contextlib.nullcontext()

    config = uvicorn.Config(
        listener.app,
        host=listener.host,
        port=listener.port,
        ssl_certfile=listener.certificate,
        ssl_keyfile=listener.key,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=3,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    return Server(config)


async def serve(listeners: list[Listener], *, on_started: "list[asyncio.Event] | None" = None) -> None:
    """Serve all ``listeners`` until SIGINT or SIGTERM. Raises UnavailableError where a port is taken.

    Each has an event loop and worker threads of its own, the first the running loop: whatever one is flooded with, the
    others answer.
    """
    import asyncio

    from anyio.to_thread import current_default_thread_limiter

    servers = [_server(listener) for listener in listeners]
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)

    async def run(server: "uvicorn.Server", listener: Listener) -> None:
        current_default_thread_limiter().total_tokens = listener.threads  # of this loop
        try:
            await server.serve()
        except SystemExit as error:  # uvicorn leaves so when it cannot bind
            stop()
            failure = bind_error(listener.host, listener.port, reuse=True)
            raise cannot_listen(listener.host, listener.port, failure) from error
        finally:
            for bound in getattr(server, "servers", []):  # told to stop while it started, uvicorn leaves them open
                bound.close()

    first, *others = [run(server, listener) for server, listener in zip(servers, listeners, strict=True)]
    tasks = [asyncio.create_task(first), *(asyncio.create_task(asyncio.to_thread(asyncio.run, it)) for it in others)]
    try:
        while not all(server.started for server in servers) and not any(task.done() for task in tasks):
            await asyncio.sleep(0.02)
        for event in on_started or []:
            event.set()
        await asyncio.gather(*tasks)
    finally:
        stop()
