"""The part of ``vht node`` that is about FHIR servers: installed sources, and a pull of one that is not."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from connector.cli.intake import take_in
from connector.cli.node_access import State, alone, connect, running
from connector.cli.output_tables import intake_table, pull_table, source_tables, sources_table
from connector.settings import NodeFiles, NodeSettings
from vht_federate import output
from vht_federate.client import Client
from vht_federate.errors import UnavailableError

if TYPE_CHECKING:
    from connector.pulls.installed_sources import Sources

__all__ = ["app"]

app = typer.Typer(add_completion=False)
Name = Annotated[str, typer.Argument(help="Name of an installed source (vht node sources).")]
LOOK_S = 0.5


def _sources(state: Path) -> "Sources":
    from connector.pulls.installed_sources import Sources

    NodeSettings.read(state)
    return Sources(NodeFiles(state.resolve()).sources)


def _described(state: Path) -> list[dict[str, Any]]:
    if running(state):
        with connect(state) as client:
            return list(client.get("/api/sources")["sources"])
    return _sources(state).described()


@app.command("pull")
@output.command("node pull")
def pull(
    state: State,
    source: Annotated[Path, typer.Option("--from", help="The FHIR server's file (docs/reference/sources.md).")],
    full: Annotated[bool, typer.Option("--full", help="Everything, not only what changed.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Everything, and in the place of all that was held.")
    ] = False,
) -> None:
    """Fetch what changed on a FHIR server, then take it in; interrupted at any point, the same command goes on."""
    from connector.fhir.sources import SourceSettings, pull_from

    NodeSettings.read(state)
    settings = SourceSettings.read(source)
    pulled, report = pull_from(
        settings,
        NodeFiles(state.resolve()).sources / settings.name,
        lambda pulled: take_in(state, pulled.folder, replace, pulled.deletions, settings.name),
        whole=full,
        replace=replace,
    )
    tables = [pull_table(settings.name, pulled.to_dict())]
    if report is not None:
        tables.append(intake_table(settings.name, report))
    output.emit("node pull", {"source": settings.name, "pulled": pulled.to_dict(), "intake": report}, *tables)


@app.command("sources")
@output.command("node sources")
def sources(state: State) -> None:
    """List the FHIR servers that this node pulls from, and how the last pull of each went."""
    installed = _described(state)
    none = "none is installed: vht node source-add STATE FILE"
    output.emit("node sources", {"sources": installed}, sources_table(installed) if installed else none)


@app.command("source-add")
@output.command("node source-add")
def add(
    state: State,
    file: Annotated[Path, typer.Argument(help="The FHIR server's file (docs/reference/sources.md).")],
) -> None:
    """Install a FHIR server, with copies of its key and certificates; again: replaces what was installed.

    A running node takes it up at once, and pulls by the file's interval.
    """
    source = _sources(state).add(file)
    output.emit("node source-add", source.described(), f"source {source.name} is installed in {source.home}")


@app.command("source-remove")
@output.command("node source-remove")
def remove(state: State, name: Name) -> None:
    """Forget a FHIR server and how far its pulls have come; what was taken in stays."""
    _sources(state).remove(name)
    output.emit("node source-remove", {"removed": name}, f"source {name} is removed")


@app.command("source-show")
@output.command("node source-show")
def show(state: State, name: Name) -> None:
    """Show one FHIR server: how it is asked, what its latest pulls brought, and why one failed."""
    data = _source_named(_described(state), state, name)
    output.emit("node source-show", data, *source_tables(data))


@app.command("source-run")
@output.command("node source-run")
def run(
    state: State,
    name: Name,
    full: Annotated[bool, typer.Option("--full", help="Everything, not only what changed.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it has ended; exit code 5 where it failed.")] = True,
) -> None:
    """Pull from an installed FHIR server now."""
    from connector.governance.operator_accounts import system_user

    if running(state):
        with connect(state) as client:
            client.post(f"/api/sources/{name}/run", json={"whole": full})
            data = (
                _ended(client, state, name)
                if wait
                else _source_named(client.get("/api/sources")["sources"], state, name)
            )
    else:
        data = dict(alone(state, lambda node: node.pulls.run(name, system_user(), whole=full)))
    if data["error"] and not data["running"]:
        raise UnavailableError(data["error"]["message"], code=data["error"]["code"], hint="the next pull goes on")
    output.emit("node source-run", data, *source_tables(data))


def _ended(client: Client, state: Path, name: str) -> dict[str, Any]:
    while True:
        time.sleep(LOOK_S)
        data = _source_named(client.get("/api/sources")["sources"], state, name)
        if not data["running"]:
            return data


def _source_named(installed: list[dict[str, Any]], state: Path, name: str) -> dict[str, Any]:
    return (
        next((source for source in installed if source["name"] == name), None) or _sources(state).get(name).described()
    )
