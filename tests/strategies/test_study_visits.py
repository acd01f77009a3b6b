"""Asking hospitals: refusals, operators, deadlines, and how a run ends before it began."""

import threading
from pathlib import Path
from typing import Any

import pytest
from kit.planned_studies import NOW, planned_study

import strategies.node_visits as visits_module
import strategies.study_run as study_run
import vht_federate.client as client_module
from strategies.coordinator import Enrolment
from strategies.known_heads import KnownHeads
from strategies.node_visits import Visits
from strategies.run_state import PID_FILE, Dispatch, DispatchNode, RunDirectory
from strategies.study import StudySession
from vht_federate.client import Prove
from vht_federate.domain.log_head import HEAD_TYP, HEADER
from vht_federate.errors import (
    CohortError,
    InputError,
    PermitError,
    RefusedError,
    RevokedError,
    UnavailableError,
    VerificationError,
    VhtError,
)
from vht_federate.processes import PidFile
from vht_federate.signing.keys import SigningKey

Hospital = dict[str, Any]


def head_of(key: SigningKey, size: int) -> str:
    return key.sign({"node": "h1", "size": size, "root": "ab" * 32, "time": NOW.isoformat()}, typ=HEAD_TYP)


class Hospitals:
    """What each hospital answers, by its URL; ``states`` are given out one by one, the last for ever."""

    def __init__(self) -> None:
        self.refuse: dict[str, VhtError] = {}
        self.busy: dict[str, list[VhtError]] = {}  # raised one by one, before the answer
        self.states: dict[str, list[Hospital]] = {}
        self.closed: list[str] = []
        self.key = SigningKey.generate()
        self.shown: list[tuple[str, str | None]] = []  # what each request says of the hospital's log

    def client(
        self, url: str, ca: Path, token: str | None = None, prove: Prove | None = None, timeout_s: float = 30.0
    ) -> "_Client":
        del ca, timeout_s
        assert prove is not None, "every request proves the coordinator's key"
        return _Client(self, url, token)


class _Client:
    def __init__(self, hospitals: Hospitals, url: str, token: str | None) -> None:
        self.hospitals, self.url, self.token = hospitals, url, token

    def __enter__(self) -> "_Client":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def get(self, path: str, headers: dict[str, str] | None = None) -> Hospital:
        if path == "/identity":
            return {"evidence_key": self.hospitals.key.public.jwk()}
        if path.endswith("/evidence"):
            self.hospitals.shown.append((path, (headers or {}).get(HEADER)))
            return {"head": head_of(self.hospitals.key, 9), "entries": []}
        assert self.token == f"token of {self.url}"
        states = self.hospitals.states[self.url]
        answer = states.pop(0) if len(states) > 1 else states[0]
        if isinstance(answer, VhtError):
            raise answer
        return answer

    def post(self, path: str, json: Hospital, headers: dict[str, str] | None = None) -> Hospital:
        self.hospitals.shown.append((path, (headers or {}).get(HEADER)))
        if path == "/visits":
            assert set(json) == {"permit", "study", "user_key"}
            if self.hospitals.busy.get(self.url):
                raise self.hospitals.busy[self.url].pop(0)
            if self.url in self.hospitals.refuse:
                raise self.hospitals.refuse[self.url]
            return {"visit": f"v-{self.url[-1]}", "token": f"token of {self.url}", "state": "requested"}
        assert path.endswith("/close")
        self.hospitals.closed.append(self.url)
        return {"state": "closed", "receipt": "r"}


class Running:
    """A coordinator that runs and knows both hospitals."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def require_running(self) -> None:
        return None

    def signing_key(self) -> SigningKey:
        return SigningKey.read(self._state / "coordinator.key")

    def enrolments(self) -> dict[str, Enrolment]:
        return {name: Enrolment(node_id=number, supernode_key="k") for number, name in enumerate(("h1", "h2"))}


@pytest.fixture
def hospitals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hospitals:
    scripted_hospitals = Hospitals()
    monkeypatch.setattr(visits_module, "Client", scripted_hospitals.client)
    monkeypatch.setattr(visits_module, "POLL_S", 0.0)
    monkeypatch.setattr(study_run.StudyRun, "coordinator", Running(tmp_path / "coordinator"))
    monkeypatch.setattr(study_run.StudyRun, "keep_status", lambda *_: None)
    monkeypatch.setattr(StudySession, "_account", lambda *_: None)
    return scripted_hospitals


def session_in(folder: Path, **sections: dict[str, Any]) -> tuple[StudySession, list[str]]:
    planned = planned_study(folder, **sections)
    nodes = tuple(node.model_copy(update={"url": f"https://{node.name}"}) for node in planned.file.nodes)
    object.__setattr__(planned, "file", planned.file.model_copy(update={"nodes": nodes}))
    lines: list[str] = []
    return StudySession(planned, folder / "run", lambda: NOW, lines.append), lines


def ready(after: int = 0) -> list[Hospital]:
    return [*({"state": "approved"} for _ in range(after)), {"state": "ready"}]


def test_a_refusal_at_one_node_of_two_that_must_be_is_the_runs_own(hospitals: Hospitals, tmp_path: Path) -> None:
    hospitals.refuse["https://h2"] = PermitError("no", code="VHT-PERMIT-COMPONENT")
    session, lines = session_in(tmp_path)
    with pytest.raises(PermitError) as caught:
        session.ask()
    assert caught.value.code == "VHT-PERMIT-COMPONENT"
    state = RunDirectory(tmp_path / "run").state()
    assert state.state == "refused"
    assert state.nodes["h2"].code == "VHT-PERMIT-COMPONENT"
    assert hospitals.closed == ["https://h1"], "the visit of the other node is closed"
    assert any("VHT-PERMIT-COMPONENT" in line for line in lines)


class Clock:
    """Time that passes by waiting alone."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of whoever asks again."""
    clock = Clock()
    monkeypatch.setattr(client_module, "time", clock)
    return clock


def busy(seconds: int) -> VhtError:
    return UnavailableError("at work on other requests", code="VHT-UNAVAILABLE-BUSY", retry_after_s=seconds)


def test_a_hospital_that_says_when_to_ask_again_is_asked_again_then_and_the_others_wait_for_nothing(
    hospitals: Hospitals, clock: Clock, tmp_path: Path
) -> None:
    hospitals.busy = {"https://h1": [busy(15), busy(0)]}
    session, lines = session_in(tmp_path)
    session.ask()
    assert list(session.visits.by_node) == ["h2", "h1"]
    assert clock.now_s == 16.0
    assert not any("refused" in line for line in lines)


@pytest.mark.parametrize("says", [[busy(60)] * 9, [busy(10**7)], [UnavailableError("down")]])
def test_one_that_is_busy_for_longer_or_says_nothing_is_refused_in_its_own_words(
    says: list[VhtError], hospitals: Hospitals, clock: Clock, tmp_path: Path
) -> None:
    hospitals.busy = {"https://h2": list(says)}
    session, _ = session_in(tmp_path)
    with pytest.raises(UnavailableError) as caught:
        session.ask()
    assert caught.value is says[0]
    assert clock.now_s <= client_module.PATIENCE_S


def test_visits_and_tokens_are_kept_for_the_owner_alone(hospitals: Hospitals, tmp_path: Path) -> None:
    session, _ = session_in(tmp_path)
    session.ask()
    path = tmp_path / "run" / "visits.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert Visits.read(tmp_path / "run", tmp_path, KnownHeads(tmp_path)).by_node == session.visits.by_node
    assert "token" not in (tmp_path / "run" / "run.json").read_text()


def test_a_folder_that_holds_a_run_is_left_alone(hospitals: Hospitals, tmp_path: Path) -> None:
    session_in(tmp_path)[0].ask()
    with pytest.raises(InputError) as caught:
        session_in(tmp_path)[0].ask()
    assert caught.value.code == "VHT-INPUT-EXISTS"


def test_approved_visits_become_a_dispatch_to_these_nodes_only(
    hospitals: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_run, "initial_weights", lambda _: b"weights")
    monkeypatch.setattr(
        Running, "message_notification", type("Notification", (), {"path": tmp_path / "messages"}), raising=False
    )
    monkeypatch.setattr(Running, "replies", type("Bell", (), {"path": tmp_path / "replies"}), raising=False)
    hospitals.states = {"https://h1": ready(2), "https://h2": [UnavailableError("restarting"), *ready(1)]}
    session, lines = session_in(tmp_path)
    session.ask()
    session.run.await_approvals(session.visits)
    dispatch = RunDirectory(tmp_path / "run").dispatch()
    assert [(node.name, node.visit, node.flower_node) for node in dispatch.nodes] == [
        ("h1", "v-1", 0),
        ("h2", "v-2", 1),
    ]
    assert dispatch.minimum_nodes == 2
    assert RunDirectory(tmp_path / "run").weights(0) == b"weights"
    assert "  h1: vht node approve STATE v-1 --operator NAME" in lines


@pytest.mark.parametrize(
    ("answer", "kind", "ended"),
    [
        ({"state": "rejected", "reason": "not here", "code": None}, CohortError, "refused"),
        ({"state": "revoked", "reason": "permit revoked", "code": "VHT-PERMIT-REVOKED"}, RevokedError, "revoked"),
        ({"state": "requested"}, CohortError, "refused"),
        ({"state": "failed", "reason": "too few", "code": "VHT-COHORT-MINIMUM"}, CohortError, "refused"),
    ],
)
def test_without_enough_ready_nodes_nothing_is_dispatched(
    answer: Hospital,
    kind: type[VhtError],
    ended: str,
    hospitals: Hospitals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(study_run, "initial_weights", lambda _: b"weights")
    hospitals.states = {"https://h1": ready(), "https://h2": [answer]}
    session, _ = session_in(tmp_path, federation={"approval_deadline_s": 0.05})
    session.ask()
    with pytest.raises(kind):
        session.go_on()
    assert RunDirectory(tmp_path / "run").state().state == ended
    assert not (tmp_path / "run" / "dispatch.json").exists()
    assert set(hospitals.closed) == {"https://h1", "https://h2"}


@pytest.mark.parametrize(
    "answer",
    [RefusedError("the proof is of another time", code="VHT-REFUSED-PROOF"), VerificationError("cut"), ["no object"]],
)
def test_what_goes_wrong_at_one_hospital_costs_the_study_that_hospital(
    answer: Any, hospitals: Hospitals, tmp_path: Path
) -> None:
    hospitals.states = {"https://h1": ready(3), "https://h2": [{"state": "requested"}, answer]}
    session, _ = session_in(tmp_path)
    session.ask()
    failures = session.visits.await_ready(300.0, lambda *_: None)
    assert list(failures) == ["h2"]
    assert failures["h2"] is answer or failures["h2"].code == "VHT-WIRE-VISIT"


def test_a_node_that_heard_of_a_revocation_by_itself_makes_the_run_revoked(
    hospitals: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_run, "initial_weights", lambda _: b"weights")
    session, _ = session_in(tmp_path)
    session.ask()
    directory = RunDirectory(tmp_path / "run")
    state = directory.state()
    state.lose("h2", UnavailableError("no enclave", code="VHT-UNAVAILABLE-ENCLAVE"))
    state.end("refused", CohortError("1 of 2 nodes are left", code="VHT-COHORT-NODES"))
    directory.write_state(state)
    hospitals.states = {"https://h2": [{"state": "revoked", "reason": "permit p is revoked"}]}
    with pytest.raises(RevokedError) as caught:
        session.go_on()
    assert caught.value.exit_code == 6
    assert directory.state().state == "revoked"


HALTED = {"state": "halted", "reason": "stopped by the operator: a repair", "code": "VHT-REFUSED-STOPPED"}


@pytest.mark.parametrize("ended", ["refused", "completed"])
def test_why_a_node_was_lost_is_said_in_its_own_words(hospitals: Hospitals, tmp_path: Path, ended: str) -> None:
    """To a courier the enclave of a halted visit is merely gone."""
    session, _ = session_in(tmp_path)
    session.ask()
    directory = RunDirectory(tmp_path / "run")
    state = directory.state()
    state.lose("h2", UnavailableError("no enclave is open", code="VHT-UNAVAILABLE-ENCLAVE"))
    state.end(ended, state.too_few(2) if ended == "refused" else None)  # type: ignore[arg-type]
    directory.write_state(state)
    hospitals.states = {"https://h2": [HALTED]}
    if ended == "refused":
        with pytest.raises(CohortError, match="stopped by the operator: a repair"):
            session.go_on()
    else:
        session._in_their_words(state)
    node = directory.state().nodes["h2"]
    assert (node.lost, node.code) == ("h2: stopped by the operator: a repair", "VHT-REFUSED-STOPPED")
    assert directory.state().state == ended


@pytest.mark.parametrize("answer", [{"state": "closed"}, {"state": "ready"}, UnavailableError("it is down")])
def test_a_node_that_says_nothing_leaves_the_reason_that_was_seen(
    hospitals: Hospitals, tmp_path: Path, answer: Any
) -> None:
    session, _ = session_in(tmp_path)
    session.ask()
    hospitals.states = {"https://h2": [answer]}
    assert session.visits.refusal("h2") is None
    assert session.visits.refusal("nobody") is None


def test_a_node_that_is_lost_is_said_while_the_run_goes_on(hospitals: Hospitals, tmp_path: Path) -> None:
    session, lines = session_in(tmp_path)
    session.ask()
    directory = RunDirectory(tmp_path / "run")
    nodes = tuple(DispatchNode(name=name, visit=f"v-{name}", flower_node=n) for n, name in enumerate(("h1", "h2")))
    plan = session.run.planned.request.plan
    dispatch = Dispatch(study_id="s", plan=plan, nodes=nodes, minimum_nodes=1, round_deadline_s=5)
    directory.create(dispatch, b"", directory.state())
    hospitals.states = {"https://h2": [HALTED]}

    def server_app() -> None:
        state = directory.state()
        with PidFile(directory.path / PID_FILE):
            state.lose("h2", UnavailableError("no enclave is open", code="VHT-UNAVAILABLE-ENCLAVE"))
            state.end("completed")
            directory.write_state(state)

    beside = threading.Timer(0.1, server_app)
    beside.start()
    session.run._follow(1, session.visits)
    beside.join()
    assert "[red]takes no further part[/]: VHT-REFUSED-STOPPED h2: stopped by the operator: a repair" in lines


def test_a_node_that_is_not_enrolled_is_named(hospitals: Hospitals, tmp_path: Path) -> None:
    class Alone(Running):
        def enrolments(self) -> dict[str, Enrolment]:
            return {"h1": Enrolment(node_id=1, supernode_key="k")}

    study_run.StudyRun.coordinator = Alone(tmp_path / "coordinator")  # type: ignore[assignment,method-assign]
    session, _ = session_in(tmp_path)
    with pytest.raises(InputError) as caught:
        session.ask()
    assert caught.value.code == "VHT-INPUT-NOT-ENROLLED"
    assert "h2" in caught.value.message


def test_a_hospital_is_shown_the_newest_state_of_its_log_that_any_study_here_saw(
    hospitals: Hospitals, tmp_path: Path
) -> None:
    session, _ = session_in(tmp_path)
    session.ask()
    assert hospitals.shown == [("/visits", None)] * 2
    hospitals.shown.clear()
    session.visits.evidence("h1")
    session.visits.evidence("h1")
    known = head_of(hospitals.key, 9)
    assert [shown for _, shown in hospitals.shown] == [None, known]
    (tmp_path / "run" / "run.json").unlink()
    hospitals.shown.clear()
    another, _ = session_in(tmp_path)
    another.ask()
    assert hospitals.shown[0] == ("/visits", known)


def test_a_run_that_was_stopped_leaves_the_heads_of_the_closed_logs(hospitals: Hospitals, tmp_path: Path) -> None:
    """The receipt of a visit that lists many events is too long to be shown."""
    session, _ = session_in(tmp_path)
    session.ask()
    session.stop()
    assert sorted(hospitals.closed) == ["https://h1", "https://h2"]
    headers = session.visits.heads.headers(hospitals.key.public.jwk())
    assert headers == {HEADER: head_of(hospitals.key, 9)}
