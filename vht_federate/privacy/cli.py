"""``vht privacy audit``. Torch is loaded by the command, not by this module."""

from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vht_federate import output
from vht_federate.errors import RefusedError
from vht_federate.privacy.audit.claim import AuditedClaim, Plant

if TYPE_CHECKING:
    from vht_federate.privacy.audit.run import Finding

__all__ = ["app"]

app = typer.Typer(help="Audit the privacy engine.", no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """Audit the privacy engine."""


@app.command()
@output.command("privacy audit")
def audit(
    plant: Annotated[
        Plant | None, typer.Option("--plant", help="Break the audited engine on purpose, to see the audit fail.")
    ] = None,
) -> None:
    """Attack the engine that nodes train with: exit 0 when its claim stands, 3 when it is refuted.

    Trains once on made-up canaries, guesses which of them were there, and tests how batches were drawn.
    """
    from vht_federate.privacy.audit.run import audit as run
    from vht_federate.privacy.noise import SecureNoise

    started = perf_counter()
    claim = AuditedClaim()
    broken = f" of an engine with {plant.value} planted" if plant else ""
    output.progress(f"one run{broken}: {claim.canaries:,} canaries, {claim.plan.rounds} private steps …")
    finding = run(claim, SecureNoise(), plant)
    data = _data(claim, finding, plant) | {"seconds": round(perf_counter() - started, 1)}
    refusal = _refusal(finding) if finding.refuted else None
    output.emit(
        "privacy audit", data | {"refusal": refusal and refusal.envelope()}, _table(claim, finding), _verdict(refusal)
    )
    if refusal:
        raise typer.Exit(refusal.exit_code)


def _data(claim: AuditedClaim, finding: "Finding", plant: Plant | None) -> dict[str, Any]:
    return {
        "claimed": finding.claimed,
        "lower_bound": finding.lower_bound,
        "confidence": finding.confidence,
        "refuted": finding.refuted,
        "test": finding.test,
        "cap": finding.cap,
        "delta": claim.delta,
        "plant": plant.value if plant else None,
        "guesses": asdict(finding.guesses),
        "sampling_p_values": asdict(finding.sampling),
    }


def _table(claim: AuditedClaim, finding: "Finding") -> Any:
    seen, batches = finding.guesses, finding.sampling
    odds = f"p {batches.p:.2g}: rate {batches.rate:.2g}, sizes {batches.sizes:.2g}, repeats {batches.repeats:.2g}"
    rows = [
        ("claimed epsilon", f"{finding.claimed:.3f} at delta {claim.delta:g}"),
        ("lower bound", f"{finding.lower_bound:.2f} at {finding.confidence:.1%} confidence"),
        ("cap of the method", f"{finding.cap:.2f}: what it says where every guess is right"),
        ("guesses", f"{seen.correct} of {seen.guesses} right, about {seen.canaries:,} canaries"),
        ("batches", odds),
    ]
    return output.table("Audit of the privacy engine", ["", ""], rows)


def _refusal(finding: "Finding") -> RefusedError:
    return RefusedError(
        f"the claim of epsilon {finding.claimed:.3f} is refuted by {finding.test}",
        code="VHT-REFUSED-AUDIT",
        hint="unless it was planted, stop training at once: the engine keeps less than it promises",
    )


def _verdict(refusal: RefusedError | None) -> str:
    if refusal:
        return f"[bold red]{refusal.code}[/] {refusal.message}\n  {refusal.hint}"
    return "[bold green]the claim stands[/]: this attack does not refute it, which is no proof"
