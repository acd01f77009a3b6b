"""The part of ``vht node`` that is about data: intake, what was set aside, opt-outs."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from connector.cli.node_access import State, alone, connect, running
from connector.cli.output_tables import explanation_table, intake_table, quarantine_table
from connector.settings import NodeFiles, NodeSettings
from vht_federate import output

if TYPE_CHECKING:
    from connector.fhir.deletions import Deletions

__all__ = ["app", "take_in"]

app = typer.Typer(add_completion=False)


@app.command("ingest")
@output.command("node ingest")
def ingest(
    state: State,
    folder: Annotated[
        Path, typer.Argument(help="Folder of FHIR R4: NDJSON (.ndjson, .jsonl) or Bundles (.json), plain, .gz or .zst.")
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="A whole new export: it takes the place of all that was held.")
    ] = False,
) -> None:
    """Take in a folder of FHIR; every line is accounted for."""
    report = take_in(state, folder.resolve(), replace)
    output.emit("node ingest", report, intake_table(folder, report))


def take_in(
    state: Path, folder: Path, replace: bool, deletions: "Deletions | None" = None, source: str | None = None
) -> dict[str, Any]:
    """The report of an intake by the running node, or by this process where none runs."""
    if running(state):
        body: dict[str, Any] = {"folder": str(folder), "replace": replace, "source": source}
        if deletions:
            files = [str(path) for path in deletions.files]
            body |= {"deletions": files, "deleted_at": deletions.at.isoformat()}
        with connect(state) as client:
            return dict(client.post("/api/ingest", json=body))
    options = {"replace": replace, "deletions": deletions, "source": source}
    return dict(alone(state, lambda node: node.ingest(folder, **options)))


@app.command("quarantine")
@output.command("node quarantine")
def quarantine(
    state: State,
    explain: Annotated[
        bool, typer.Option("--explain", help="Read the lines again where they still are, and say what is wrong.")
    ] = False,
    folders: Annotated[
        list[Path] | None, typer.Option("--from", help="Where the export lies, if not where it was taken in from.")
    ] = None,
) -> None:
    """List every line and value that was set aside, by file, line and element; never with its content."""
    from connector.fhir.store import Store

    NodeSettings.read(state)
    generation = Store(NodeFiles(state).fhir).current()
    entries = generation.quarantine() if generation else []
    if not explain:
        output.emit("node quarantine", {"entries": entries}, quarantine_table(entries))
        return
    from connector.fhir.intake import installed_ports
    from connector.fhir.observation_values import Units
    from connector.fhir.quarantine_explanation import explain as explained

    places = [path.resolve() for path in folders or ()] + [Path(folder) for folder in _taken_in_from(state)]
    explanations = [explanation.to_dict() for explanation in explained(entries, places, Units(installed_ports()))]
    output.emit("node quarantine", {"entries": explanations}, explanation_table(explanations))


def _taken_in_from(state: Path) -> list[str]:
    """Folders of earlier intakes, newest first."""
    if running(state):
        with connect(state) as client:
            ingests = client.get("/api/ingests")["ingests"]
    else:
        ingests = alone(state, lambda node: node.overview.ingests())
    return [intake["folder"] for intake in ingests if intake.get("folder")]


@app.command("opt-out")
@output.command("node opt-out")
def opt_out(
    state: State,
    patient_id: Annotated[str, typer.Argument(help="Patient.id, or a reference to the patient.")],
    at: Annotated[datetime | None, typer.Option(help="Since when (UTC); now by default.")] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="End the opt-out instead.")] = False,
    ahead: Annotated[bool, typer.Option("--ahead", help="Of a patient whose data are still to come.")] = False,
) -> None:
    """Record a patient's opt-out (Article 71), or its withdrawal."""
    moment = (at if at.tzinfo else at.replace(tzinfo=UTC)) if at else None
    if running(state):
        body = {"patient_id": patient_id, "at": moment.isoformat() if moment else None, "ahead": ahead}
        with connect(state) as client:
            data = client.request("DELETE" if withdraw else "POST", "/api/opt-outs", json=body).json()
    elif withdraw:
        data = {"withdrawn": alone(state, lambda node: node.withdraw_opt_out(patient_id, at=moment))}
    else:
        alone(state, lambda node: node.opt_out(patient_id, since=moment, ahead=ahead))
        data = {"recorded": True}
    done = "no opt-out was in force" if data.get("withdrawn") is False else "withdrawn" if withdraw else "recorded"
    output.emit("node opt-out", data, done)
