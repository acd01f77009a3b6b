"""``vht data``: cohorts to try the system on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vht_federate import output
from vht_federate.samples import generator, split, uci

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Generate, import or split FHIR cohorts.")


@app.command("generate")
@output.command("data generate")
def generate(
    out: Annotated[Path, typer.Option("--out", help="Folder to write; a new one, or one written by this command.")],
    hospitals: Annotated[int, typer.Option(help="How many hospitals.")] = 4,
    patients: Annotated[int, typer.Option(help="Patients per hospital, on average.")] = 1500,
    seed: Annotated[int, typer.Option(help="The same seed writes the same bytes.")] = 7,
    canaries: Annotated[Path | None, typer.Option(help="Plant unique strings for leak tests; list them here.")] = None,
) -> None:
    """Synthetic cardiometabolic cohorts as FHIR R4, with the truth beside them."""
    generated = generator.generate(out, hospitals=hospitals, patients=patients, seed=seed, canaries=canaries)
    _show("data generate", out, generated)


@app.command("import-uci")
@output.command("data import-uci")
def import_uci(
    folder: Annotated[Path, typer.Argument(help="Holds processed.{cleveland,hungarian,switzerland,va}.data.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; a new one, or one written by this command.")],
) -> None:
    """The four hospitals of UCI Heart Disease as FHIR R4, missing values kept missing."""
    _show("data import-uci", out, uci.import_folder(folder, out))


@app.command("split")
@output.command("data split")
def split_into_hospitals(
    export: Annotated[Path, typer.Argument(help="FHIR R4 export: a folder of NDJSON (plain, .gz, .zst), or a .tgz.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; a new one, or one written by this command.")],
    hospitals: Annotated[int, typer.Option(help="How many hospitals.")] = 4,
) -> None:
    """One FHIR export as several hospitals, by a public rule: a hash of Patient.id."""
    result = split.split_export(export, out, hospitals=hospitals)
    aside = [("of types that no node reads", kind, count) for kind, count in result.unread.items()]
    aside += [("of no patient in this export", kind, count) for kind, count in result.stray.items()]
    aside += [("not a resource", "", result.malformed)] if result.malformed else []
    title = f"Left out, of {result.lines} lines"
    _show(
        "data split",
        out,
        result.hospitals,
        output.table(title, ("lines", "type", "count"), aside) if aside else f"{title}: none",
        *[f"not a resource: {place}" for place in result.malformed_at],
        *[f"not read: {name}" for name in result.ignored],
        lines=result.lines,
        shared=result.shared,
        unread=result.unread,
        stray=result.stray,
        malformed=result.malformed,
        malformed_at=result.malformed_at,
        ignored=result.ignored,
    )


def _show(name: str, out: Path, hospitals: list[generator.GeneratedHospital], *more: Any, **data: Any) -> None:
    rows = [(h.name, h.kind, h.patients, sum(h.resources.values())) for h in hospitals]
    output.emit(
        name,
        {
            "folder": str(out),
            "patients": sum(h.patients for h in hospitals),
            "resources": sum(sum(h.resources.values()) for h in hospitals),
            "hospitals": [{"name": h.name, "patients": h.patients, "resources": h.resources} for h in hospitals],
            **data,
        },
        output.table(f"Written to {out}", ("hospital", "kind", "patients", "resources"), rows),
        *more,
    )
