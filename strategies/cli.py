"""``vht coordinator`` and ``vht study``: thin commands over the modules of this room."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from vht_federate import output
from vht_federate.errors import InputError

__all__ = ["coordinator", "study"]

coordinator = typer.Typer(no_args_is_help=True, help="Run a coordinator: SuperLink, executor, gateway.")
study = typer.Typer(no_args_is_help=True, help="Plan, run and publish a study.")

State = Annotated[Path, typer.Argument(help="State directory of the coordinator.")]


@coordinator.command("init")
@output.command("coordinator init")
def coordinator_init(
    state: State,
    certificate: Annotated[Path, typer.Option(help="TLS certificate (PEM).")],
    key: Annotated[Path, typer.Option(help="Its private key (PEM).")],
    ca: Annotated[Path, typer.Option(help="The certificate authority (PEM).")],
    host: Annotated[str, typer.Option(help="Address hospitals connect to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port hospitals connect to; 0 picks a free one.")] = 0,
) -> None:
    """Make a coordinator's state directory and its evidence key."""
    from strategies.coordinator import Coordinator

    made = Coordinator.init(state, host=host, port=port, certificate=certificate, key=key, ca=ca)
    data = {"state": str(state), "address": made.address, "evidence_key": str(state / "coordinator.pub.json")}
    output.emit("coordinator init", data, f"Coordinator at {made.address}; public key {data['evidence_key']}")


@coordinator.command("serve")
@output.command("coordinator serve")
def coordinator_serve(state: State) -> None:
    """Serve in the foreground until Ctrl-C or 'vht coordinator stop'."""
    from strategies.coordinator import Coordinator

    opened = Coordinator.open(state)
    opened.serve(lambda: output.progress(f"coordinator ready: hospitals connect to {opened.address}"))


@coordinator.command("enrol")
@output.command("coordinator enrol")
def coordinator_enrol(
    state: State,
    name: Annotated[str, typer.Option(help="Name of the hospital, as in study files.")],
    supernode_key: Annotated[str, typer.Option(help="File with the SuperNode's OpenSSH public key; - reads stdin.")],
) -> None:
    """Let a hospital's SuperNode connect; the coordinator must be running."""
    from strategies.coordinator import Coordinator

    try:
        text = sys.stdin.read() if supernode_key == "-" else Path(supernode_key).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {supernode_key}", code="VHT-INPUT-SUPERNODE-KEY") from error
    opened = Coordinator.open(state)
    opened.require_running()
    made = opened.enrol(name, text)
    output.emit("coordinator enrol", {"name": name, "node_id": str(made.node_id)}, f"{name} is enrolled")


@coordinator.command("status")
@output.command("coordinator status")
def coordinator_status(state: State) -> None:
    """Show whether it runs and which hospitals are connected."""
    from strategies.coordinator import Coordinator

    opened = Coordinator.open(state)
    pid = opened.pid_file.running()
    answers = pid is not None and opened.control.answers()
    online = opened.control.nodes() if answers else {}
    rows = [(name, one.node_id, online.get(one.node_id, "unknown")) for name, one in opened.enrolments().items()]
    data = {
        "running": pid is not None,
        "superlink": answers,
        "pid": pid,
        "address": opened.address,
        "nodes": [{"name": name, "node_id": str(node), "status": status} for name, node, status in rows],
    }
    words = f"coordinator {opened.address}: {'running' if pid else 'stopped'}"
    output.emit("coordinator status", data, words, output.table("Hospitals", ["name", "node id", "status"], rows))


@coordinator.command("stop")
@output.command("coordinator stop")
def coordinator_stop(state: State) -> None:
    """Stop the running coordinator and all it started."""
    from strategies.coordinator import Coordinator

    pid = Coordinator.open(state).stop()
    output.emit(
        "coordinator stop", {"stopped": pid is not None, "pid": pid}, "stopped" if pid else "it was not running"
    )
