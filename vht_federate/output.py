"""How commands speak: progress and tables for people on stderr/stdout, or one JSON envelope with ``--json``.

Envelope: ``{schema_version, command, ok, data | error{code, message, hint}}``. Exit codes are in ``errors.py``.
Rich is loaded when something is printed for people: a command with ``--json`` starts without it.
"""

import contextvars
import errno
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
import typer

from vht_federate.errors import InterruptError, UnavailableError, VhtError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "SCHEMA_VERSION",
    "Rows",
    "command",
    "emit",
    "fail",
    "interrupted",
    "json_mode",
    "progress",
    "set_json_mode",
    "table",
    "terminal",
    "written",
]

SCHEMA_VERSION = "1"
PIPE_CLOSED = 128 + signal.SIGPIPE

P = ParamSpec("P")
R = TypeVar("R")

_json_mode: contextvars.ContextVar[bool] = contextvars.ContextVar("vht_json_mode", default=False)


@functools.cache
def terminal(*, stderr: bool = False) -> "Console":
    """The console of stdout, or of stderr."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # Rich would leave with exit code 1

    return Terminal(stderr=stderr, soft_wrap=True)


def set_json_mode(on: bool) -> None:
    """Called once by the root command for ``--json``; a sub-command's own ``--json`` may call it too."""
    _json_mode.set(_json_mode.get() or on)


def json_mode() -> bool:
    return _json_mode.get()


def progress(message: str) -> None:
    """One line of progress for people, on stderr, so that stdout stays machine-readable."""
    terminal(stderr=True).print(message, highlight=False, markup=True)


@dataclass(frozen=True)
class Rows:
    """A titled table of values, which becomes a Rich table when it is printed."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __rich__(self) -> "Table":
        from rich.markup import escape
        from rich.table import Table

        shown = Table(title=self.title, title_justify="left", header_style="bold")
        for column in self.columns:
            shown.add_column(column, overflow="fold")
        for row in self.rows:
            shown.add_row(*("-" if value is None else escape(str(value)) for value in row))
        return shown


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Rows:
    """A table of ``rows`` (any values, shown as they are; None shows as a dash)."""
    return Rows(title, tuple(columns), tuple(tuple(row) for row in rows))


@contextmanager
def written() -> Iterator[None]:
    """For what is printed on stdout: a reader who has seen enough, as ``head`` has, ends the command without a word.

    It leaves as a process that SIGPIPE ended, with exit code 141. The signal itself stays off: a server must outlive
    clients that go away.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # what is still buffered is written when the interpreter ends
        os.close(nowhere)
        raise typer.Exit(PIPE_CLOSED) from None


def emit(name: str, data: dict[str, Any], *renderables: Any) -> None:
    """Print the result of command ``name``: the envelope in JSON mode, else the ``renderables`` for people."""
    with written():
        if json_mode():
            envelope = {"schema_version": SCHEMA_VERSION, "command": name, "ok": True, "data": data}
            print(json.dumps(envelope, default=str))
            return
        for renderable in renderables:
            terminal().print(renderable, highlight=False)


def fail(name: str, error: VhtError) -> None:
    """Print ``error`` in the mode in force and leave with its documented exit code."""
    if json_mode():
        envelope = {"schema_version": SCHEMA_VERSION, "command": name, "ok": False, "error": error.envelope()}
        with written():
            print(json.dumps(envelope))
    else:
        from rich.markup import escape

        console = terminal(stderr=True)
        console.print(f"[bold red]{error.code}[/] {escape(error.message)}", highlight=False)
        if error.hint:
            console.print(f"  hint: {error.hint}", highlight=False, markup=False)
    raise typer.Exit(error.exit_code)


def interrupted(name: str) -> None:
    """Say that Ctrl-C ended command ``name``, and leave with its exit code."""
    if not json_mode():
        progress("interrupted")
        raise typer.Exit(InterruptError.exit_code) from None
    fail(name, InterruptError("interrupted", hint="what had taken effect stays; the command may be run again"))


def _typed(error: Exception) -> VhtError:
    """A foreign exception as one of ours. Its own words stay out: they may quote what was being read."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UnavailableError(
            "there is no room left to write",
            code="VHT-UNAVAILABLE-DISK",
            hint="nothing half done took effect: free the disk, then run the same command again",
        )
    if isinstance(error, OSError):
        suffix = f" ({Path(str(error.filename)).name})" if error.filename else ""
        return UnavailableError(f"{error.strerror or type(error).__name__}{suffix}", code="VHT-UNAVAILABLE-FILE")
    return VhtError(
        f"internal error ({type(error).__name__})", hint="a fault of ours: VHT_DEBUG=1 shows where, for a report"
    )


def command(name: str) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
    """Decorate a Typer command: typed errors become the envelope (or a red line) and their exit code."""

    def decorate(function: Callable[P, R]) -> Callable[P, R | None]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return function(*args, **kwargs)
            except VhtError as error:
                fail(name, error)
                return None
            except KeyboardInterrupt:
                interrupted(name)
                return None
            except (typer.Exit, typer.Abort, click.ClickException):
                raise
            except Exception as error:
                if os.environ.get("VHT_DEBUG"):
                    raise
                fail(name, _typed(error))
                return None

        return run

    return decorate
