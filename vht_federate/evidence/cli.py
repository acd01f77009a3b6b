"""``vht audit``: verify evidence offline, report it, build trust files, show what a bundle claims."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from vht_federate import output
from vht_federate.errors import InputError
from vht_federate.evidence.trust import TrustFile
from vht_federate.signing.keys import PublicKey, unverified_claims
from vht_federate.signing.strict_json import read_json

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Verify evidence offline; build trust files.")

Bundle = Annotated[Path, typer.Argument(help="Folder of the evidence bundle.")]
Trust = Annotated[Path, typer.Option("--trust", help="Trusted public keys, from outside the bundle.")]


@app.command("verify")
@output.command("audit verify")
def verify(bundle: Bundle, trust: Trust) -> None:
    """Check everything offline, and trace the permit from issue to release. Exit code 4 where anything fails."""
    from rich.markup import escape

    from vht_federate.evidence.verify import verify_bundle

    verification = verify_bundle(bundle, TrustFile.read(trust))
    checks = output.table(
        "Verified", ["file", "what holds"], [(check.where, check.what) for check in verification.checks]
    )
    rows = [(f"{line.time:%Y-%m-%d %H:%M:%S}", line.who, line.what, line.where) for line in verification.trace]
    trace = output.table("Trace of the permit", ["time (UTC)", "who", "what", "where"], rows)
    notes = [escape(f"note: {note}") for note in verification.notes]
    epsilon, delta = verification.as_dict()["epsilon"], verification.study.plan.delta
    verdict = (
        f"The evidence holds: study {verification.study.study_id} under permit {verification.permit.permit_id} ended "
        f"as {verification.run.state}; at most epsilon {epsilon:.4f} at delta {delta:g} per patient at any node."
    )
    output.emit("audit verify", verification.as_dict(), trace, checks, *notes, verdict)


@app.command("compare")
@output.command("audit compare")
def compare(
    bundles: Annotated[list[Path], typer.Argument(help="Folders of two or more evidence bundles.")], trust: Trust
) -> None:
    """Check that each hospital's log is one and the same in several bundles. Exit code 4 where anything fails.

    A log that was restored from an older copy holds in every bundle by itself, and not beside another.
    """
    from vht_federate.evidence.log_history import require_same_history
    from vht_federate.evidence.verify import verify_bundle

    if len(bundles) < 2:
        raise InputError("comparing takes two bundles or more", code="VHT-INPUT-BUNDLE")
    keys = TrustFile.read(trust)
    verified = [verify_bundle(bundle, keys) for bundle in bundles]
    rows = []
    for number, later in enumerate(verified):
        for earlier, folder in zip(verified[:number], bundles, strict=False):
            for name in sorted(later.logs.keys() & earlier.logs.keys()):
                shared = require_same_history(later.logs[name], earlier.logs[name], str(folder))
                rows.append((name, str(folder), str(bundles[number]), shared))
    columns = ["hospital", "bundle", "and", "entries in common"]
    data = {"same": [dict(zip(("node", "bundle", "other", "entries"), row, strict=True)) for row in rows]}
    verdict = "Each hospital's log is the same in all bundles." if rows else "No hospital has a log in two of them."
    output.emit("audit compare", data, output.table("Logs", columns, rows), verdict)


@app.command("report")
@output.command("audit report")
def report(
    bundle: Bundle, trust: Trust, out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html")
) -> None:
    """Verify, then write a page that an auditor can print and sign. Nothing is written where anything fails."""
    from vht_federate.evidence.report import report_html
    from vht_federate.evidence.verify import verify_bundle

    keys = TrustFile.read(trust)
    verification = verify_bundle(bundle, keys)
    out.write_text(report_html(verification, keys, verified_at=datetime.now(UTC)), encoding="utf-8")
    output.emit("audit report", {"report": str(out), "sha256": verification.sha256}, f"report: {out}")


@app.command("trust")
@output.command("audit trust")
def make_trust(
    issuer: Annotated[Path, typer.Option(help="The permit issuer's public key (.pub.json).")],
    coordinator: Annotated[Path, typer.Option(help="The coordinator's public key (.pub.json).")],
    node: Annotated[list[str], typer.Option(help="NAME=FILE, once per node.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
) -> None:
    """Put the public keys that you trust into one file. Obtain each key from its owner, not from a bundle."""
    nodes = {}
    for item in node:
        name, separator, file = item.partition("=")
        if not separator or not name or name in nodes:
            raise InputError(f"--node {item} is not NAME=FILE, or names a node twice", code="VHT-INPUT-TRUST")
        nodes[name] = PublicKey.read(Path(file))
    trust_file = TrustFile.of(PublicKey.read(issuer), PublicKey.read(coordinator), nodes)
    trust_file.write(out)
    kids = {"issuer": trust_file.issuer_key.kid, "coordinator": trust_file.coordinator_key.kid}
    kids |= {name: key.kid for name, key in nodes.items()}
    data = {"trust": str(out), "keys": kids}
    output.emit("audit trust", data, output.table(f"Trusted keys in {out}", ["who", "key"], kids.items()))


@app.command("ledger")
@output.command("audit ledger")
def audit_node_ledger(
    file: Annotated[Path, typer.Argument(help="What 'vht node ledger export' wrote.")],
    key: Annotated[Path | None, typer.Option(help="The node's public key (.pub.json), from the node itself.")] = None,
) -> None:
    """Compute a node's ledger again from its events alone, and compare. Exit code 4 where a number differs."""
    from vht_federate.evidence.ledger_file import LedgerFile, audit_ledger

    ledger = LedgerFile.read(file)
    audit = audit_ledger(ledger, PublicKey.read(key) if key else None)
    rows = [
        (scope, f"{epsilon['train']:.4f}", f"{epsilon['test']:.4f}") for scope, epsilon in sorted(audit.spent.items())
    ]
    data = {
        "node": ledger.node,
        "signed": key is not None,
        "spent": audit.spent,
        "dearest_group": audit.dearest_group,
        "groups": audit.groups,
        "runs": audit.runs,
    }
    verdict = (
        f"The ledger of {ledger.node} holds: {audit.runs} runs, {audit.groups} groups of patients; the dearest is "
        f"counted at epsilon {audit.dearest_group:.4f}. Groups below {ledger.smallest_cell} patients are not shown: "
        "they paid at most what the dataset's line says."
    )
    unsigned = [] if key else ["note: without --key the file's signature was not checked"]
    output.emit("audit ledger", data, output.table("Epsilon", ["of", "train", "test"], rows), *unsigned, verdict)


@app.command("show")
@output.command("audit show")
def show(bundle: Bundle) -> None:
    """Show what a bundle claims, without verifying anything."""
    from vht_federate.evidence.run_check import read_run

    try:
        manifest = read_json((bundle / "manifest.json").read_bytes())
        permit = unverified_claims((bundle / "permit.jwt").read_text().strip())
        study = unverified_claims((bundle / "study.jws").read_text().strip())
        run = read_run((bundle / "run.json").read_bytes())
        files = {str(name): int(entry["bytes"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{bundle.name} is not an evidence bundle", code="VHT-INPUT-BUNDLE") from error
    data = {
        "verified": False,
        "study_id": study.get("study_id"),
        "permit_id": permit.get("permit_id"),
        "state": run.state,
        "nodes": sorted(run.nodes),
        "files": files,
    }
    claims = [(name, ", ".join(value) if isinstance(value, list) else value) for name, value in data.items()]
    summary = output.table("Claims, NOT VERIFIED", ["what", "claim"], claims[:-1])
    output.emit("audit show", data, summary, output.table("Files", ["file", "bytes"], files.items()))
