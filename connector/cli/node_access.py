"""How a command reaches a node: over the internal API of one that runs, by opening the directory of one that rests."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from connector.settings import NodeFiles, NodeSettings
from vht_federate.client import Client
from vht_federate.errors import InputError, UnavailableError
from vht_federate.processes import PidFile

__all__ = ["State", "alone", "connect", "running"]

State = Annotated[Path, typer.Argument(help="State directory of the node.")]
LONG_S = 3600.0


def running(state: Path) -> bool:
    NodeSettings.read(state)
    return PidFile(NodeFiles(state).pid).running() is not None


def connect(state: Path) -> Client:
    """The running node's internal API. Raises UnavailableError VHT-UNAVAILABLE-NODE."""
    if not running(state):
        raise UnavailableError(
            "this node is not running", code="VHT-UNAVAILABLE-NODE", hint=f"start it with 'vht node serve {state}'"
        )
    settings = NodeSettings.read(state)
    try:
        token = NodeFiles(state).operator_token.read_text().strip()
    except OSError as error:
        raise InputError("the operator token cannot be read", code="VHT-INPUT-CONFIG") from error
    return Client(settings.internal_url, settings.ca, token=token, timeout_s=LONG_S)


def alone(state: Path, act: Callable[[Any], Any]) -> Any:
    """Open the directory of a node that does not run, and keep it from starting meanwhile."""
    from connector.node import Node
    from vht_federate.files import private_files

    with private_files(state), PidFile(NodeFiles(state).pid), Node(state) as node:
        return act(node)
