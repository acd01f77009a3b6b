"""``vht demo``: permit -> FHIR at four hospitals -> private federated training -> release -> cohort -> evidence.

Everything goes through the public commands and HTTP APIs (``deploy/local_federation.py``); what is added here is the
story, the baselines of someone who knows all data because it made them (``deploy/demo/baselines.py``), the summary and
the report.
"""

import json
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from deploy.commands import Commands
from deploy.demo.baselines import HarnessRequest
from deploy.demo.report import report_html
from deploy.demo.studies import export_terms, terms_for
from deploy.demo.summary import Outcome, shown, summary_of
from deploy.local_federation import Hospital, LocalFederation
from vht_federate.errors import InputError
from vht_federate.output import emit, progress, terminal
from vht_federate.processes import PidFile
from vht_federate.samples.export import Export
from vht_federate.samples.uci import read_folder
from vht_federate.text import counted

__all__ = ["DemoOptions", "measure", "prepare_baselines", "run_demo"]

OURS = (
    "data", "pki", "nodes", "logs", "study", "authority", "coordinator", "platform", "run", "harness",
    "trust.json", "summary.json", "report.html", "endpoints.json", "commands.sh",
)  # fmt: skip
REPORT = "report.html"
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
    """Run the whole chain into ``options.out``. Leaves no process behind, also on Ctrl-C (exit 130).

    Nothing that an earlier demo left there is touched before the input was looked at and no other demo runs there.
    """
    started = time.monotonic()
    out = options.out.resolve()
    _check_input(options, out)
    terms = export_terms(options.hospitals) if options.fhir else terms_for(options.uci is not None)
    # Explicitly, SIGINT too: a shell starts background jobs with it ignored.
    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with PidFile(out / "demo.pid"):
            _prepare(out)
            with Commands(out / "commands.sh") as commands:
                hospitals = _data(options, out, commands)
                terms = replace(terms, minimum_nodes=min(terms.minimum_nodes, len(hospitals)))
                federation = LocalFederation(out, hospitals, terms, commands)
                summary = _run(federation, started)
                emit("demo", summary, *shown(summary, len(hospitals)))
                if options.keep:
                    _keep(federation)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a signal handler
    raise KeyboardInterrupt


def _check_input(options: DemoOptions, out: Path) -> None:
    """What the demo is to read is there, is what it should be, and is nothing that the demo would write over."""
    source = options.uci or options.fhir
    if source is not None and source.resolve().is_relative_to(out):
        raise InputError(
            f"{source} lies in --out, which the demo writes", code="VHT-INPUT-DEMO", hint="choose another --out"
        )
    if options.uci is not None:
        read_folder(options.uci)
    if options.fhir is not None:
        for _ in Export(options.fhir.resolve()).lines(each=1):
            pass


def _prepare(out: Path) -> None:
    """An existing folder is fine; what an earlier demo left there is removed, nothing else is touched."""
    if (out / MARKER).exists():
        for name in OURS:
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return
    clash = [name for name in OURS if (out / name).exists()]
    if clash:
        raise InputError(
            f"{out} holds {', '.join(clash)}, which no demo wrote",
            code="VHT-INPUT-OUT",
            hint="choose another --out; nothing was changed",
        )
    (out / MARKER).write_text("Written by vht demo; a later demo replaces its files here.\n")


def _data(options: DemoOptions, out: Path, commands: Commands) -> list[Hospital]:
    if options.uci is not None:
        progress("importing the four UCI hospitals as FHIR R4")
        commands.run("data", "import-uci", str(options.uci.resolve()), "--out", str(out / "data"))
    elif options.fhir is not None:
        _split(options.fhir, options.hospitals, out, commands)
    else:
        patients = counted(options.patients, "patient")
        progress(f"generating {counted(options.hospitals, 'hospital')} of about {patients} as FHIR R4")
        commands.run(
            "data", "generate", "--hospitals", str(options.hospitals), "--patients", str(options.patients),
            "--seed", str(options.seed), "--out", str(out / "data"),
        )  # fmt: skip
    folders = sorted(path for path in (out / "data").iterdir() if (path / "Patient.ndjson").exists())
    return [Hospital(folder.name, folder) for folder in folders]


def _split(export: Path, hospitals: int, out: Path, commands: Commands) -> None:
    progress(f"splitting the export into {counted(hospitals, 'hospital')} by a public rule on Patient.id")
    report = commands.run(
        "data", "split", str(export.resolve()), "--hospitals", str(hospitals), "--out", str(out / "data")
    )
    left_out = {"of types that no node reads": report["unread"], "of no patient in the export": report["stray"]}
    for reason, counts in left_out.items():
        if counts:
            progress(f"  left out, {reason}: {', '.join(f'{kind} {count}' for kind, count in counts.items())}")
    if report["malformed"]:
        progress(f"  left out, not a resource: {report['malformed']} lines")


def _run(federation: LocalFederation, started: float) -> dict[str, Any]:
    root, terms, commands = federation.root, federation.terms, federation.commands
    federation.start()
    federation.save_endpoints()
    progress("issuing the permit")
    permit = federation.issue_permit()
    study = federation.write_study()
    prepare_baselines(federation, study)
    with ThreadPoolExecutor(max_workers=1) as beside:
        baselines: Future[Any] = beside.submit(commands.python, "deploy.demo.baselines", "baselines", str(root))
        try:
            run = federation.run_study(study, root / "run")
            progress("verifying all evidence offline, with keys from outside the bundle")
            verified = commands.run("audit", "verify", str(root / "run" / "bundle"), "--trust", str(federation.trust))
            progress("comparing with what no hospital can know: the data of all")
            baselines.result()
        except BaseException:
            commands.close()  # nobody waits for the baselines of a study that did not complete
            raise
    if run["lost"]:
        prepare_baselines(federation, study, run["participants"])
        commands.python("deploy.demo.baselines", "baselines", str(root))
    outcome = Outcome(permit, run, verified, measure(federation))
    summary = summary_of(federation, outcome, root / REPORT, time.monotonic() - started)
    (root / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (root / REPORT).write_text(report_html(summary, made_at=datetime.now(UTC)), encoding="utf-8")
    if terms.epsilon < summary["epsilon"] - 1e-9:
        raise InputError("the ledgers hold more than the study planned", code="VHT-BUDGET-SUMMARY")
    return summary


def prepare_baselines(federation: LocalFederation, study: Path, names: Sequence[str] | None = None) -> None:
    """Write what the baselines need: where the data of the hospitals ``names`` (else: of all) are, and the plan."""
    plan = federation.commands.run("study", "plan", str(study))["plan"]
    hospitals = {
        hospital.name: hospital.folder for hospital in federation.hospitals if names is None or hospital.name in names
    }
    HarnessRequest.model_validate(
        {
            "hospitals": hospitals,
            "component": federation.terms.component,
            "profile": federation.terms.profile,
            "plan": plan,
        }
    ).write(federation.root)


def measure(federation: LocalFederation) -> dict[str, Any]:
    """Exact figures of what was released, beside the baselines."""
    figures: dict[str, Any] = federation.commands.python("deploy.demo.baselines", "release", str(federation.root))
    return figures


def _keep(federation: LocalFederation) -> None:
    terminal().print("\nPages (Ctrl-C stops everything):")
    for name, url in federation.describe().items():
        terminal().print(f"  {name:<14} {url}", highlight=False)
    waiting: Callable[[], None] = signal.pause
    try:
        while True:
            waiting()
    except KeyboardInterrupt:
        progress("stopping")
