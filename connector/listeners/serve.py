"""Run one node: both listeners over TLS in one process, each with threads of its own, until SIGINT or SIGTERM."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from connector.listeners.internal import internal_app
from connector.listeners.outward import outward_app
from connector.node import Node
from connector.process_log import open_log
from connector.settings import NodeFiles
from vht_federate.files import private_files
from vht_federate.processes import PidFile
from vht_federate.serving import Listener, serve

__all__ = ["run_node"]

OUTSIDE = 12  # requests from outside at work at once: a small share of the database's connections
INSIDE = 40  # and of operators and the FHIR API: with OUTSIDE, fewer than the database has connections


def run_node(state: Path, on_ready: Callable[[Node], None]) -> None:
    """Serve the node in ``state``. Returns when it was told to stop and everything it started has ended.

    Raises UnavailableError where another process serves this directory or a port is taken.
    """
    with contextlib.ExitStack() as closing:
        closing.enter_context(private_files(state))
        closing.enter_context(PidFile(NodeFiles(state).pid))
        handler = open_log(NodeFiles(state).log)
        closing.callback(_close_log, handler)
        closing.enter_context(_interrupted_by_sigterm())
        node = closing.enter_context(Node(state))
        closing.callback(_undisturbed)
        node.start()
        asyncio.run(_serve(node, on_ready))


async def _serve(node: Node, on_ready: Callable[[Node], None]) -> None:
    settings = node.settings
    tls = settings.certificate, settings.key
    listeners = [
        Listener(outward_app(node), settings.host, settings.port, *tls, threads=OUTSIDE),
        Listener(internal_app(node), settings.internal_host, settings.internal_port, *tls, threads=INSIDE),
    ]
    started = asyncio.Event()
    ready = asyncio.create_task(_announce(started, node, on_ready))
    try:
        await serve(listeners, on_started=[started])
    finally:
        ready.cancel()


async def _announce(started: asyncio.Event, node: Node, on_ready: Callable[[Node], None]) -> None:
    await started.wait()
    on_ready(node)


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Before and after the listeners run, SIGTERM ends the process as Ctrl-C does: through every clean-up."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _undisturbed() -> None:
    """From here on the node stops what it started; a second signal must not cut that short."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _close_log(handler: logging.Handler) -> None:
    logging.getLogger().removeHandler(handler)
    handler.close()
