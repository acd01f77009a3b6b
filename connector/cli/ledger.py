"""The part of ``vht node`` that is about the budget: what was spent, who remains, and the ledger for an auditor."""

from pathlib import Path
from typing import Annotated

import typer

from connector.cli.node_access import State
from connector.cli.output_tables import budget_table, patients_table
from connector.settings import NodeFiles, NodeSettings
from vht_federate import output

__all__ = ["app"]

app = typer.Typer(add_completion=False)
ledger = typer.Typer(no_args_is_help=True, help="The ledger of privacy budgets.")
app.add_typer(ledger, name="ledger")


@app.command("budget")
@output.command("node budget")
def budget(state: State) -> None:
    """Show what was spent and reserved, and how many patients remain under each cap."""
    from connector.overview import Overview
    from connector.store.node_database import open_database

    settings, files = NodeSettings.read(state), NodeFiles(state)
    database = open_database(settings, files)
    try:
        data = Overview(settings, files, database).budget()
    finally:
        database.close()
    output.emit("node budget", data, patients_table(data["patients"]), budget_table(data))


@ledger.command("export")
@output.command("node ledger export")
def export(state: State, out: Annotated[Path, typer.Option(help="File to write.")] = Path("ledger.json")) -> None:
    """Write the ledger for an auditor: every event, groups of patients by size, no subject and no small cell."""
    from connector.governance.ledger_export import export_ledger
    from connector.node import utc_now
    from connector.overview import Overview
    from connector.store.node_database import open_database
    from vht_federate.signing.keys import SigningKey

    settings, files = NodeSettings.read(state), NodeFiles(state)
    key = SigningKey.read(files.evidence_key)
    database = open_database(settings, files)
    try:
        with database.read() as session:
            ledger_file = export_ledger(session, Overview(settings, files, database).ledger, settings, key, utc_now())
    finally:
        database.close()
    out.write_text(ledger_file.model_dump_json(indent=1) + "\n")
    data = {"out": str(out), "runs": len(ledger_file.runs), "groups": len(ledger_file.groups), "kid": key.public.kid}
    output.emit(
        "node ledger export", data, f"{len(ledger_file.runs)} runs and {len(ledger_file.groups)} groups in {out}"
    )
