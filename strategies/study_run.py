"""``vht study run``: ask the hospitals, wait for their operators, run the rounds on Flower, then release.

Everything a run needs to go on after a crash lies in its directory: ``study.jws`` (what was asked), ``visits.json``
(tokens, mode 0600), ``dispatch.json``, ``run.json`` and the checkpoints (``run_state.py``).
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from strategies.coordinator import Coordinator
from strategies.node_visits import Visits
from strategies.plan import PlannedStudy, check_locally, initial_weights
from strategies.run_state import PID_FILE, Dispatch, DispatchNode, NodeState, RunDirectory, RunState
from vht_federate.client import Client
from vht_federate.errors import CohortError, InputError, UnavailableError, VhtError
from vht_federate.processes import PidFile
from vht_federate.text import counted

__all__ = ["StudyRun"]

FLOWER_APP = Path(__file__).parent / "flower_app"
ONLINE_DEADLINE_S = 60.0
START_DEADLINE_S = 120.0  # from submission until the ServerApp opened its run
GRACE_S = 3.0
FLOWER_RUN = "flower-run.txt"
Say = Callable[[str], None]


@dataclass(frozen=True)
class StudyRun:
    """One study in one output folder. ``say`` prints a line of progress for people."""

    planned: PlannedStudy
    out: Path
    clock: Callable[[], datetime]
    say: Say

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.out.resolve())

    @property
    def coordinator(self) -> Coordinator:
        return Coordinator.open(self.planned.file.federation.coordinator)

    # ---- asking ----------------------------------------------------------------------------------------------

    def ask(self, visits: Visits, *, check_first: bool = True) -> Visits:
        """Request a visit at every node, into ``visits``. Raises the first refusal where too few nodes accept.

        ``check_first`` refuses here what the nodes would refuse anyway, before anybody is bothered.
        """
        if check_first:
            check_locally(self.planned, self.clock())
        coordinator = self.coordinator
        coordinator.require_running()
        missing = [node.name for node in self.planned.file.nodes if node.name not in coordinator.enrolments()]
        if missing:
            raise InputError(
                f"not enrolled at the coordinator: {', '.join(missing)}",
                code="VHT-INPUT-NOT-ENROLLED",
                hint="vht coordinator enrol STATE --name NAME --supernode-key FILE",
            )
        if (self.out / "run.json").exists():
            raise InputError(f"{self.out} already holds a run", code="VHT-INPUT-EXISTS", hint="vht study resume DIR")
        if self.planned.file.federation.issuer is None:
            raise InputError(
                "the study names no issuer, so its evidence would lack the permit's status",
                code="VHT-INPUT-STUDY",
                hint="set federation.issuer to the URL of the permit issuer's service",
            )
        key = coordinator.signing_key()
        if self.planned.request.coordinator != key.public:
            raise InputError(
                "the study names another coordinator's key than that of its state directory",
                code="VHT-INPUT-STUDY",
                hint="is coordinator.pub.json the public half of coordinator.key?",
            )
        visits = replace(visits, key=key)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "permit.jwt").write_text(self.planned.permit_token + "\n")
        token = self.planned.token
        (self.out / "study.jws").write_text(token + "\n")
        self.keep_status("start")
        body = {"permit": self.planned.permit_token, "study": token, "user_key": self.planned.user_key.public.jwk()}
        refused = visits.request(self.planned.file.nodes, body, self.out)
        self.directory.write_state(self._requested(visits, refused))
        for name, error in refused.items():
            self.say(f"[red]{name} refused[/]: {error.code} {_escaped(error.message)}")
        if len(visits.by_node) < self.planned.minimum_nodes:
            self._give_up(visits, next(iter(refused.values())))
        return visits

    def _requested(self, visits: Visits, refused: dict[str, VhtError]) -> RunState:
        enrolments = self.coordinator.enrolments()
        state = RunState(study_id=self.planned.request.study_id, state="requested")
        for node in self.planned.file.nodes:
            visit = visits.by_node.get(node.name)
            flower_node = enrolments[node.name].node_id
            state.nodes[node.name] = NodeState(flower_node=flower_node, visit=visit.visit if visit else "")
            if node.name in refused:
                state.lose(node.name, refused[node.name])
        return state

    def _give_up(self, visits: Visits, error: VhtError) -> None:
        state = self.directory.state()
        state.end("revoked" if error.exit_code == 6 else "refused", error)
        self.directory.write_state(state)
        self.close(visits, "too few nodes take part")
        raise error

    def await_approvals(self, visits: Visits) -> None:
        """Wait for the operators, then write ``dispatch.json`` and the initial weights."""
        with ThreadPoolExecutor(max_workers=1) as beside:
            weights = beside.submit(initial_weights, self.planned)
            self.say(f"waiting for {counted(len(visits.by_node), 'hospital')} to approve; at each, its operator:")
            for visit in visits.by_node.values():
                self.say(f"  {visit.node}: vht node approve STATE {visit.visit} --operator NAME")
            deadline_s = self.planned.file.federation.approval_deadline_s
            failures = visits.await_ready(deadline_s, lambda node, state: self.say(f"  {node}: visit {state}"))
            self._dispatch(visits, failures, weights)

    def _dispatch(self, visits: Visits, failures: dict[str, VhtError], weights: "Future[bytes]") -> None:
        state, planned = self.directory.state(), self.planned
        for name, error in failures.items():
            state.lose(name, error)
            self.say(f"[red]takes no part[/]: {error.code} {_escaped(error.message)}")
            visits.close(name, "not part of the run")
        taking_part = state.taking_part()
        self.directory.write_state(state)
        if len(taking_part) < planned.minimum_nodes:
            reasons = "; ".join(f"{error.message}, {error.code}" for error in failures.values())
            verb = "is" if len(taking_part) == 1 else "are"
            error = next((failure for failure in failures.values() if failure.exit_code == 6), None) or CohortError(
                f"{counted(len(taking_part), 'node')} {verb} ready, "
                f"at least {planned.minimum_nodes} must be ({reasons})",
                code="VHT-COHORT-NODES",
            )
            self._give_up(visits, error)
        coordinator = self.coordinator
        nodes = [(name, state.nodes[name]) for name in taking_part]
        dispatch = Dispatch(
            study_id=planned.request.study_id,
            plan=planned.request.plan,
            nodes=tuple(
                DispatchNode(name=name, visit=node.visit, flower_node=node.flower_node) for name, node in nodes
            ),
            minimum_nodes=planned.minimum_nodes,
            round_deadline_s=planned.file.federation.round_deadline_s,
            message_notification=coordinator.message_notification.path,
            replies=coordinator.replies.path,
            codebook=planned.request.codebook,
        )
        self.directory.create(dispatch, weights.result(), state)

    # ---- running ---------------------------------------------------------------------------------------------

    def run(self, visits: Visits) -> RunState:
        """Submit to Flower and follow to the end. Raises UnavailableError where the ServerApp died: then resume."""
        dispatch, state = self.directory.dispatch(), self.directory.state()
        if state.ended:
            raise InputError(f"this run already ended as {state.state}", code="VHT-INPUT-RUN")
        control = self.coordinator.control
        self._await_online(dispatch)
        number = control.start_run(FLOWER_APP, {"run-directory": str(self.directory.path)})
        (self.out / FLOWER_RUN).write_text(f"{number}\n")
        self.say(f"Flower run {number} submitted to {counted(len(dispatch.nodes), 'node')}")
        return self._follow(number, visits)

    def _await_online(self, dispatch: Dispatch) -> None:
        end = time.monotonic() + ONLINE_DEADLINE_S
        while time.monotonic() < end:
            online = self.coordinator.control.nodes()
            if all(online.get(node.flower_node) == "online" for node in dispatch.nodes):
                return
            time.sleep(1.0)
        self.say("[yellow]not every SuperNode is connected; going on with those that are[/]")

    def _follow(self, number: int, visits: Visits) -> RunState:
        dispatch, phases_reported, seen_running = self.directory.dispatch(), 0, False
        lost = {name for name, node in self.directory.state().nodes.items() if node.lost}
        started = time.monotonic()
        server = PidFile(self.directory.path / PID_FILE)
        while True:
            running = server.running() is not None
            state = self.directory.state()
            for phase in state.rounds[phases_reported:]:
                self.say(self._phase_line(phase.job, phase.round, len(phase.outputs), phase.seconds, dispatch))
            phases_reported = len(state.rounds)
            for name in [name for name, node in state.nodes.items() if node.lost and name not in lost]:
                lost.add(name)
                self.say(self._lost_line(name, state.nodes[name], visits.refusal(name)))
            if state.ended:
                return state
            if seen_running and not running:
                raise self._died("the ServerApp ended in the middle of the run")
            if not seen_running and not running and time.monotonic() - started > START_DEADLINE_S:
                status, details = self.coordinator.control.run_status(number)
                raise self._died(f"the ServerApp did not start ({status} {details})")
            seen_running = seen_running or running
            time.sleep(0.2)

    @staticmethod
    def _lost_line(name: str, node: NodeState, own_words: VhtError | None) -> str:
        code, words = (own_words.code, own_words.message) if own_words else (node.code, f"{name}: {node.lost}")
        return f"[red]takes no further part[/]: {code} {_escaped(words)}"

    @staticmethod
    def _phase_line(job: str, round_: int, answered: int, seconds: float, dispatch: Dispatch) -> str:
        rounds = {"train": dispatch.plan.training.rounds, "marginals": 2}.get(job, 1)
        phase_name = {"train": "round", "evaluate": "evaluation", "marginals": "marginals"}.get(job, job)
        asked = counted(len(dispatch.nodes), "node")
        return f"{phase_name} {round_}/{rounds}: {answered} of {asked} answered ({seconds:.1f} s)"

    def _died(self, why: str) -> VhtError:
        return UnavailableError(why, code="VHT-UNAVAILABLE-SERVERAPP", hint=f"vht study resume {self.out}")

    def stop(self, visits: Visits) -> None:
        """Stop the run and close the visits, as far as that is possible. The state says so."""
        directory = self.directory
        if not (directory.path / "run.json").exists():
            return
        directory.request_stop()
        end = time.monotonic() + GRACE_S
        while PidFile(directory.path / PID_FILE).running() and time.monotonic() < end:
            time.sleep(0.1)
        state = directory.state()
        number = self.out / FLOWER_RUN
        if number.exists() and not state.ended:
            try:
                self.coordinator.control.stop_run(int(number.read_text()))
            except VhtError as error:
                self.say(f"[yellow]{error.message}[/]")
        if not state.ended:
            state.end("stopped", reason="stopped by the coordinator")
            directory.write_state(state)
        for name in self.close(visits, "stopped by the coordinator"):
            with suppress(VhtError):
                visits.evidence(name)  # for its head: the receipt of a long visit is too long to be shown later

    def close(self, visits: Visits, reason: str) -> dict[str, str]:
        """Close every visit that is still open; receipts by node."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            names = list(visits.by_node)
            receipts = pool.map(lambda name: visits.close(name, reason), names)
            return {name: receipt for name, receipt in zip(names, receipts, strict=True) if receipt}

    def keep_status(self, name: str) -> None:
        """Keep the issuer's status list of this moment for the evidence, where a service is named."""
        issuer = self.planned.file.federation.issuer
        if issuer is None:
            return
        with Client(issuer, self.planned.file.federation.ca) as client:
            token = client.request("GET", "/status-list").text.strip()
        (self.out / f"status-{name}.jwt").write_text(token + "\n")


def _escaped(text: str) -> str:
    """As rich prints it, which only a terminal needs."""
    from rich.markup import escape

    return escape(text)
