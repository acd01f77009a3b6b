"""``vht coordinator`` and ``vht study``: thin commands over the modules of this room."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vht_federate import output
from vht_federate.errors import InputError, VhtError
from vht_federate.serving import await_ready

if TYPE_CHECKING:
    from strategies.study import StudySession

__all__ = ["coordinator", "study"]

coordinator = typer.Typer(no_args_is_help=True, help="Run a coordinator: SuperLink, executor, gateway.")
study = typer.Typer(no_args_is_help=True, help="Plan, run and publish a study.")

State = Annotated[Path, typer.Argument(help="State directory of the coordinator.")]


@coordinator.command("init")
@output.command("coordinator init")
def coordinator_init(
    state: State,
    certificate: Annotated[Path, typer.Option(help="TLS certificate (PEM); it names the host.")],
    key: Annotated[Path, typer.Option(help="Its private key (PEM).")],
    ca: Annotated[Path, typer.Option(help="The certificate authority (PEM).")],
    host: Annotated[str, typer.Option(help="Address hospitals connect to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port hospitals connect to; 0 picks a free one.")] = 0,
) -> None:
    """Make a coordinator's state directory and its evidence key."""
    from strategies.coordinator import Coordinator

    tls = {"certificate": certificate, "key": key, "ca": ca}
    new_coordinator = Coordinator.init(state, host=host, port=port, **tls)
    data = {
        "state": str(state),
        "address": new_coordinator.address,
        "evidence_key": str(state / "coordinator.pub.json"),
        "evidence_kid": new_coordinator.signing_key().public.kid,
    }
    words = f"coordinator at {new_coordinator.address}, key {data['evidence_kid']}\npublic key: {data['evidence_key']}"
    output.emit("coordinator init", data, words)


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
    supernode_key: Annotated[
        str,
        typer.Option(
            "--supernode-key", "--supernode", help="File with the SuperNode's OpenSSH public key; - reads stdin."
        ),
    ],
) -> None:
    """Let a hospital's SuperNode connect; the coordinator must be running."""
    from strategies.coordinator import Coordinator

    try:
        text = sys.stdin.read() if supernode_key == "-" else Path(supernode_key).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {supernode_key}", code="VHT-INPUT-SUPERNODE-KEY") from error
    opened = Coordinator.open(state)
    opened.require_running()
    enrolment = opened.enrol(name, text)
    output.emit("coordinator enrol", {"name": name, "node_id": str(enrolment.node_id)}, f"{name} is enrolled")


@coordinator.command("status")
@output.command("coordinator status")
def coordinator_status(
    state: State,
    wait: Annotated[float, typer.Option(help="Seconds to wait until it is ready; exit code 5 where it is not.")] = 0.0,
) -> None:
    """Show whether it runs and which hospitals are connected."""
    from strategies.coordinator import Coordinator

    opened = Coordinator.open(state)
    await_ready(
        lambda: opened.pid_file.running() is not None and opened.control.answers(), wait_s=wait, what="the coordinator"
    )
    pid = opened.pid_file.running()
    answers = pid is not None and opened.control.answers()
    online = opened.control.nodes() if answers else {}
    rows = [
        (name, enrolment.node_id, online.get(enrolment.node_id, "unknown"))
        for name, enrolment in opened.enrolments().items()
    ]
    data = {
        "running": pid is not None,
        "ready": answers,
        "pid": pid,
        "address": opened.address,
        "nodes": [
            {"name": name, "node_id": str(node), "status": status, "online": status == "online"}
            for name, node, status in rows
        ],
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


# --- study ------------------------------------------------------------------------------------------------------

Study = Annotated[Path, typer.Argument(help="The study file (study.toml).")]


def _now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def _interruptible(session: "StudySession") -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the run, close the visits, and leave with 130."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        output.progress("stopping the run and closing the visits")
        with suppress(VhtError):
            session.stop()
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@study.command("init")
@output.command("study init")
def study_init(out: Annotated[Path, typer.Argument(help="File to write (study.toml).")]) -> None:
    """Write a commented study file to fill in."""
    from strategies.study_template import STUDY_TEMPLATE

    if out.exists():
        raise InputError(f"{out} exists", code="VHT-INPUT-EXISTS")
    out.write_text(STUDY_TEMPLATE)
    output.emit("study init", {"study": str(out)}, f"Fill in {out}, then: vht study plan {out}")


@study.command("plan")
@output.command("study plan")
def study_plan(study_file: Study) -> None:
    """Show what a study will do and cost: noise, epsilon per population, every call; fail where the permit says no."""
    from strategies.plan import check_locally, plan_study
    from vht_federate.domain.study import StudyFile

    planned = plan_study(StudyFile.read(study_file), _now())
    refusal = None
    try:
        check_locally(planned, _now())
    except VhtError as error:
        refusal = error  # for people after what it would cost; one envelope holds one answer
    if refusal and output.json_mode():
        raise refusal
    plan = planned.request.plan
    data = {
        "study_id": planned.request.study_id,
        "permit_id": planned.permit.permit_id,
        "component": planned.request.component.model_dump(mode="json"),
        "columns": list(planned.request.columns),
        "minimum_nodes": planned.minimum_nodes,
        "plan": plan.model_dump(mode="json"),
        "epsilon": planned.epsilon,
        "permit_epsilon": planned.permit.epsilon,
        "calls": [{"job": job, "round": number} for job, number in plan.calls()],
    }
    rows = [
        (f"{job} {number}", event.label, event.population, event.noise_multiplier, event.sampling_rate, event.steps)
        for job, number in plan.calls()
        for event in plan.events_of(job, number)
    ]
    spent = [
        (name, f"{value:.4f}", f"{planned.permit.epsilon:g}", f"{plan.delta:g}")
        for name, value in planned.epsilon.items()
    ]
    output.emit(
        "study plan",
        data,
        output.table("What it spends", ["call", "release", "population", "noise", "rate", "steps"], rows),
        output.table("What a patient pays", ["population", "epsilon", "permit's ceiling", "delta"], spent),
    )
    if refusal:
        raise refusal


@study.command("run")
@output.command("study run")
def study_run(
    study_file: Study,
    out: Annotated[Path, typer.Option(help="Folder for the run, its release and its evidence.")],
    wait_approval: Annotated[
        bool, typer.Option(help="Wait for the operators; without, go on later with 'vht study resume'.")
    ] = True,
    check_first: Annotated[
        bool, typer.Option(help="Compare with the permit before asking; without, the hospitals alone judge.")
    ] = True,
) -> None:
    """Ask the hospitals, run the rounds, release and publish."""
    from strategies.study import StudySession

    session = StudySession.start(study_file, out, _now, output.progress)
    with _interruptible(session):
        session.ask(check_first=check_first)
        if wait_approval:
            _finish("study run", session)
        else:
            visits = {name: visit.visit for name, visit in session.visits.by_node.items()}
            visit_table = output.table("Asked; each waits for its operator", ["hospital", "visit"], visits.items())
            words = f"once they approved: vht study resume {out}"
            output.emit("study run", {"state": "requested", "visits": visits}, visit_table, words)


@study.command("resume")
@output.command("study resume")
def study_resume(out: Annotated[Path, typer.Argument(help="The --out folder of 'vht study run'.")]) -> None:
    """Go on with a run that was interrupted; what was answered is not paid for twice."""
    from strategies.study import StudySession

    session = StudySession.reopen(out, _now, output.progress)
    with _interruptible(session):
        _finish("study resume", session)


def _finish(name: str, session: "StudySession") -> None:
    from strategies.run_state import STUDY_PID
    from vht_federate.processes import PidFile

    with PidFile(session.run.directory.path / STUDY_PID):
        result = session.go_on()
    figures = result["figures"]
    rows = [
        (key, value)
        for key, value in figures.items()
        if isinstance(value, int | float | str) and not key.startswith(("auc_released", "accuracy_released"))
    ]
    rows += figures.get("released", {}).items()  # each with its interval
    words = f"{result['study_id']} {result['state']}: {result['reason']}"
    paths = output.table("Where", ["what", "path"], result["paths"].items())
    output.emit(name, result, words, output.table("Result", ["what", "value"], rows), paths)


@study.command("status")
@output.command("study status")
def study_status(out: Annotated[Path, typer.Argument(help="The --out folder of 'vht study run'.")]) -> None:
    """Show how far a run came."""
    from strategies.run_state import RunDirectory

    directory = RunDirectory(out)
    state = directory.state()
    if interruption := directory.interruption(state):
        state_now = {"state": "interrupted", "reason": interruption}
    else:
        state_now = {"state": state.state, "reason": state.reason}
    phases = [(phase.job, phase.round, len(phase.outputs), phase.seconds) for phase in state.rounds]
    nodes = [(name, node.visit, len(node.rounds), node.lost) for name, node in state.nodes.items()]
    output.emit(
        "study status",
        state.model_dump(mode="json") | state_now,
        f"{state.study_id}: {state_now['state']} {state_now['reason']}".strip(),
        output.table("Phases", ["job", "round", "nodes", "seconds"], phases),
        output.table("Nodes", ["name", "visit", "answers", "lost"], nodes),
    )


@study.command("feasibility")
@output.command("study feasibility")
def study_feasibility(
    study_file: Study,
    view: Annotated[Path, typer.Argument(help="The cohort definition: a ViewDefinition with a column 'patient'.")],
    node: Annotated[list[str] | None, typer.Option(help="A hospital by name or URL; all of the study's else.")] = None,
    epsilon: Annotated[float, typer.Option(help="What an answer costs one patient: more is closer.")] = 0.1,
    title: Annotated[str | None, typer.Option(help="What the operators read; the study's title else.")] = None,
) -> None:
    """Ask hospitals how many of their patients meet a definition; the answers carry noise, and cost privacy."""
    from strategies.feasibility import ask_hospitals
    from vht_federate.domain.study import StudyFile

    parsed_study = StudyFile.read(study_file)
    words = title or parsed_study.study.title
    answers = ask_hospitals(parsed_study, view, nodes=node or (), epsilon=epsilon, title=words, now=_now())
    if not answers.by_node:
        raise next(iter(answers.refused.values()))
    data = answers.to_dict()
    rows = [
        (
            name,
            answer["count"],
            answer["smallest_cell"],
            f"{answer['standard_deviation']:.1f}",
            answer["epsilon"],
            answer["code"],
        )
        for name, answer in data["nodes"].items()
    ]
    rows += [
        (name, None, None, "", None, f"{refusal['code']}: {refusal['message']}")
        for name, refusal in data["refused"].items()
    ]
    columns = ["hospital", "patients", "told from", "noise (sd)", "epsilon", "code"]
    total = f"together about {data['total']}, noise {data['standard_deviation']:.1f}" if data["total"] else "no total"
    output.emit("study feasibility", data, output.table(words, columns, rows), total)
