"""``vht … --json`` in this process: a start of a process costs seconds, and only ``serve`` needs its own."""

import contextvars
import json
from typing import Any

from typer.testing import CliRunner

from vht_federate.cli import app
from vht_federate.errors import error_from_envelope

__all__ = ["exit_and_envelope", "vht_node"]


def exit_and_envelope(*arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit code and the envelope of ``vht --json …``; JSON mode ends with the call."""
    line = ["--json", *map(str, arguments)]
    result = contextvars.copy_context().run(CliRunner().invoke, app, line)
    return result.exit_code, json.loads(result.stdout)


def vht_node(*arguments: object) -> dict[str, Any]:
    """The data of ``vht node …``. Raises the typed error that it ended with."""
    _, envelope = exit_and_envelope("node", *arguments)
    if not envelope["ok"]:
        raise error_from_envelope(envelope["error"])
    return dict(envelope["data"])
