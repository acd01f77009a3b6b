"""``vht demo``, and ``vht pki``: certificates for a federation that brings none of its own."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from deploy.pki import issue_certificate, make_authority
from vht_federate import output
from vht_federate.errors import InputError

__all__ = ["demo", "pki"]

pki = typer.Typer(add_completion=False, no_args_is_help=True, help="Make a certificate authority and TLS certificates.")


@pki.command("ca")
@output.command("pki ca")
def make_ca(out: Annotated[Path, typer.Option(help="Folder for ca.crt and ca.key.")]) -> None:
    """Make a certificate authority; keep one that exists."""
    issued = make_authority(out, now=datetime.now(UTC))
    output.emit(
        "pki ca", {"certificate": str(issued.certificate), "key": str(issued.key)}, f"authority: {issued.certificate}"
    )


@pki.command("cert")
@output.command("pki cert")
def make_certificate(
    ca: Annotated[Path, typer.Option(help="Folder of the authority.")],
    name: Annotated[str, typer.Option(help="Name of the service, e.g. hospital-1.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.crt, NAME.key and ca.crt.")],
    host: Annotated[list[str] | None, typer.Option(help="Further host names or addresses.")] = None,
) -> None:
    """Sign a TLS certificate for one service."""
    issued = issue_certificate(ca, name, out, now=datetime.now(UTC), hosts=host or [])
    data = {"certificate": str(issued.certificate), "key": str(issued.key), "ca": str(issued.ca)}
    output.emit("pki cert", data, f"certificate: {issued.certificate}")


@output.command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Where everything is written; may exist.")] = Path("demo-out"),
    uci: Annotated[
        Path | None, typer.Option(help="Folder of the four UCI heart-disease files: four real hospitals.")
    ] = None,
    fhir: Annotated[
        Path | None,
        typer.Option(help="A FHIR R4 export (a folder of NDJSON, or one .tgz): its patients, split into hospitals."),
    ] = None,
    hospitals: Annotated[int, typer.Option(min=1, max=16, help="Hospitals, generated or of the export.")] = 4,
    patients: Annotated[int, typer.Option(min=50, help="Patients per generated hospital, on average.")] = 1500,
    seed: Annotated[int, typer.Option(help="Of the generated data.")] = 7,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the pages up until Ctrl-C.")] = False,
) -> None:
    """Four hospitals, end to end, on this machine."""
    if uci and fhir:
        raise InputError("--uci and --fhir are two demos", code="VHT-INPUT-DEMO", hint="run one after the other")
    from deploy.demo.run import DemoOptions, run_demo

    run_demo(DemoOptions(out, uci, fhir, hospitals, patients, seed, keep))
