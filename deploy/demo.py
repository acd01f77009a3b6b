"""``vht demo``: permit -> FHIR at four hospitals -> private federated training -> release -> cohort -> evidence.

Everything goes through the public commands and HTTP APIs (``deploy/local.py``); what is added here is the story, the
harness that knows all data because it made them, and the summary.
"""

import json
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from deploy.commands import Commands
from deploy.harness import HarnessRequest
from deploy.local import Hospital, LocalFederation
from deploy.terms import export_terms, terms_for
from vht_federate.errors import InputError
from vht_federate.output import emit, people, progress, table
from vht_federate.processes import PidFile

__all__ = ["DemoOptions", "measure", "prepare_harness", "run_demo"]

OURS = (
    "data", "pki", "nodes", "logs", "study", "authority", "coordinator", "platform", "run", "harness",
    "trust.json", "summary.json", "endpoints.json", "commands.sh",
)  # fmt: skip
MARKER = ".vht-demo"


@dataclass(frozen=True)
class DemoOptions:
    """``uci``: folder of the four UCI files. ``fhir``: a FHIR export, to be split into ``hospitals``. Neither:
    generated data, ``patients`` per hospital on average.
    """

    out: Path
    uci: Path | None = None
    fhir: Path | None = None
    hospitals: int = 4
    patients: int = 1500
    seed: int = 7
    keep: bool = False


def run_demo(options: DemoOptions) -> None:
    """Run the whole chain into ``options.out``. Leaves no process behind, also on Ctrl-C (exit 130)."""
    started = time.monotonic()
    out = _prepare(options.out)
    terms = export_terms(options.hospitals) if options.fhir else terms_for(options.uci is not None)
    # Explicitly, SIGINT too: a shell starts background jobs with it ignored.
    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with PidFile(out / "demo.pid"), Commands(out / "commands.sh") as commands:
            hospitals = _data(options, out, commands)
            federation = LocalFederation(out, hospitals, terms, commands)
            summary = _run(federation, started)
            _show(summary, federation)
            if options.keep:
                _keep(federation)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a signal handler
    raise KeyboardInterrupt


def _prepare(out: Path) -> Path:
    """An existing folder is fine; what an earlier demo left there is replaced, nothing else is touched."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if (out / MARKER).exists():
        running = PidFile(out / "demo.pid").running()
        if running is None:
            for name in OURS:
                path = out / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return out
    clash = [name for name in OURS if (out / name).exists()]
    if clash:
        raise InputError(
            f"{out} holds {', '.join(clash)}, which no demo wrote",
            code="VHT-INPUT-OUT",
            hint="choose another --out; nothing was changed",
        )
    (out / MARKER).write_text("Written by vht demo; a later demo replaces its files here.\n")
    return out


def _data(options: DemoOptions, out: Path, commands: Commands) -> list[Hospital]:
    if options.uci is not None:
        progress("importing the four UCI hospitals as FHIR R4")
        commands.run("data", "import-uci", str(options.uci.resolve()), "--out", str(out / "data"))
    elif options.fhir is not None:
        _split(options.fhir, options.hospitals, out, commands)
    else:
        progress(f"generating {options.hospitals} hospitals of about {options.patients} patients as FHIR R4")
        commands.run(
            "data", "generate", "--hospitals", str(options.hospitals), "--patients", str(options.patients),
            "--seed", str(options.seed), "--out", str(out / "data"),
        )  # fmt: skip
    folders = sorted(path for path in (out / "data").iterdir() if (path / "Patient.ndjson").exists())
    return [Hospital(folder.name, folder) for folder in folders]


def _split(export: Path, hospitals: int, out: Path, commands: Commands) -> None:
    progress(f"splitting the export into {hospitals} hospitals by a public rule on Patient.id")
    made = commands.run(
        "data", "split", str(export.resolve()), "--hospitals", str(hospitals), "--out", str(out / "data")
    )
    left_out = {"of types that no node reads": made["unread"], "of no patient in the export": made["stray"]}
    for what, counts in left_out.items():
        if counts:
            progress(f"  left out, {what}: {', '.join(f'{kind} {count}' for kind, count in counts.items())}")
    if made["malformed"]:
        progress(f"  left out, not a resource: {made['malformed']} lines")


def _run(federation: LocalFederation, started: float) -> dict[str, Any]:
    root, terms, commands = federation.root, federation.terms, federation.commands
    federation.start()
    federation.save_endpoints()
    progress("issuing the permit")
    permit = federation.issue_permit()
    study = federation.write_study()
    prepare_harness(federation, study)
    with ThreadPoolExecutor(max_workers=1) as beside:
        baselines: Future[Any] = beside.submit(commands.python, "deploy.harness", "baselines", str(root))
        try:
            run = federation.run_study(study, root / "run")
            progress("verifying all evidence offline, with keys from outside the bundle")
            verified = commands.run("audit", "verify", str(root / "run" / "bundle"), "--trust", str(federation.trust))
        except BaseException:
            commands.close()  # nobody waits for the baselines of a study that did not complete
            raise
        baselines.result()
    progress("comparing with what no hospital can know: the pooled data")
    truth = measure(federation)
    summary = _summary(federation, permit, run, verified, truth)
    summary["seconds"] = round(time.monotonic() - started, 1)
    (root / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    if terms.epsilon < summary["epsilon"] - 1e-9:
        raise InputError("the ledgers hold more than the study planned", code="VHT-BUDGET-SUMMARY")
    return summary


def prepare_harness(federation: LocalFederation, study: Path) -> None:
    """Write what the harness needs: where the data are, and the plan that ``vht study plan`` prints."""
    plan = federation.commands.run("study", "plan", str(study))["plan"]
    HarnessRequest.model_validate(
        {
            "hospitals": {hospital.name: hospital.folder for hospital in federation.hospitals},
            "component": federation.terms.component,
            "profile": federation.terms.profile,
            "plan": plan,
        }
    ).write(federation.root)


def measure(federation: LocalFederation) -> dict[str, Any]:
    """Exact figures of the released component on all test patients, beside the baselines."""
    weights = federation.root / "run" / "bundle" / "release" / federation.terms.component / "weights.safetensors"
    figures: dict[str, Any] = federation.commands.python(
        "deploy.harness", "release", str(federation.root), str(weights)
    )
    return figures


def _summary(
    federation: LocalFederation,
    permit: str,
    run: dict[str, Any],
    verified: dict[str, Any],
    truth: dict[str, Any],
) -> dict[str, Any]:
    ledgers = {name: budget["datasets"] for name, budget in federation.ledgers().items()}
    return {
        "schema_version": "1",
        "study_id": federation.terms.study_id,
        "profile": federation.terms.profile,
        "permit_id": permit,
        "state": run["state"],
        "participants": run["participants"],
        "lost": run["lost"],
        "delta": federation.terms.delta,
        "ledger": ledgers,
        **run["figures"],
        "harness": truth,
        "verified": verified,
        "pages": {name: url.split("?")[0] for name, url in federation.describe().items()},
    }


def _cohort_in_words(cohort: dict[str, Any] | None) -> str:
    if cohort is None:
        return "withheld: it did not keep what was released (see run/run.json)"
    return f"{cohort['rows']} rows, epsilon {cohort['epsilon']:.3f} of the total"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _released_auc(summary: dict[str, Any]) -> str:
    radius = (summary["evaluation"] or {}).get("pooled_auc_radius")
    moved = "" if radius is None else f", moved by noise by up to {radius:.3f}"
    return f"{_figure(summary['auc_federated'])}{moved}"


def _rows(summary: dict[str, Any], federation: LocalFederation) -> list[tuple[str, str]]:
    truth, terms = summary["harness"], federation.terms
    taking_part = f"{len(summary['participants'])} of {len(federation.hospitals)} hospitals"
    return [
        ("study", f"{summary['study_id']}: {summary['state']}, {taking_part}, {summary['seconds']:.0f} s in all"),
        *((f"  without {name}", why) for name, why in summary["lost"].items()),
        ("epsilon, one patient at one hospital", f"{summary['epsilon']:.3f} of {terms.epsilon:g} at {terms.delta:g}"),
        ("AUC, as released with noise", _released_auc(summary)),
        ("accuracy, mean over hospitals, as released", _figure(summary["accuracy_mean_over_nodes"])),
        ("patients with a record, of them with the outcome", f"{truth['patients']}, {truth['patients_with_outcome']}"),
        ("  test patients alone", f"{truth['test_patients']}, {truth['test_patients_with_outcome']}"),
        ("exact AUC on all test patients: this component", _figure(truth["auc_federated"])),
        ("  pooled data, without privacy", _figure(truth["auc_pooled_nonprivate"])),
        ("  each hospital alone, same plan", _figure(truth["auc_local_mean"])),
        (f"  {truth['single_input']} alone", _figure(truth["auc_single_input"])),
        ("  the number of missing inputs alone", _figure(truth["auc_missing_count"])),
        ("exact accuracy, mean over hospitals: this component", _figure(truth["accuracy_federated"])),
        ("  pooled data, without privacy", _figure(truth["accuracy_pooled_nonprivate"])),
        ("  always what most patients of the hospital have", _figure(truth["accuracy_majority"])),
        ("synthetic cohort", _cohort_in_words(summary["cohort"])),
        ("evidence", f"{summary['verified']['entries']} log entries verified offline"),
    ]


def _show(summary: dict[str, Any], federation: LocalFederation) -> None:
    root = federation.root
    places = [
        ("component", "run/release"),
        ("cohort", "run/cohort"),
        ("evidence", "run/bundle"),
        ("figures", "summary.json"),
    ]
    emit(
        "demo",
        summary,
        table("What came out", ["what", "value"], _rows(summary, federation)),
        "\n".join(f"{name:<10} {root / place}" for name, place in places),
        f"Pages: vht platform serve {root / 'platform'}, or the demo with --keep. Every command that ran: commands.sh",
    )


def _keep(federation: LocalFederation) -> None:
    people.print("\nPages (Ctrl-C stops everything):")
    for name, url in federation.describe().items():
        people.print(f"  {name:<14} {url}", highlight=False)
    waiting: Callable[[], None] = signal.pause
    try:
        while True:
            waiting()
    except KeyboardInterrupt:
        progress("stopping")
