"""One phase: every node's answers, whatever one node or the SuperLink does meanwhile."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.task_identity import TaskIdentity
from kit.scripted_superlink import RUN, ScriptedSuperLink, failure, reply_to

import strategies.phase as phase
from strategies.file_notification import FileNotification
from strategies.message_content import Answer, pack_replies
from strategies.phase import ATTEMPTS, LATE, Exchange
from vht_federate.framing import Call, Reply

NODES = {"a": 11, "b": 12}
CALLS = {name: [Call("v-1", "train", 1, {}, b"weights")] for name in NODES}
Hospital = Callable[[str, int], None]  # (identifier of a message, how often it was asked before)


@pytest.fixture(autouse=True)
def running_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskIdentity, "_run_id", RUN)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rests is asked for again at once: when that is, the test says, and no clock."""
    monkeypatch.setattr(phase, "STALLED_AT_LEAST_S", 0.0)
    monkeypatch.setattr(phase, "STALLED_SHARE", 0.0)


@pytest.fixture
def superlink() -> Iterator[ScriptedSuperLink]:
    scripted_superlink = ScriptedSuperLink()
    yield scripted_superlink
    scripted_superlink.parts.clear()  # whoever still waits for a part gives up


def replied(number: int = 1, ok: bool = True) -> Any:
    reply = Reply({"number": number})
    return pack_replies([Answer(reply, reply.sha256() if ok else "another digest")], answering="m")


def ask(superlink: ScriptedSuperLink, a: Hospital, *, deadline_s: float = 60.0, **more: Any) -> dict[str, Answer]:
    """One phase in which hospital b answers at once. The answer of each."""
    times_asked: Counter[int] = Counter()

    def on_message(identifier: str, node: int) -> None:
        if node == NODES["b"]:
            superlink.announce(reply_to(identifier, replied()))
        else:
            a(identifier, times_asked[node])
        times_asked[node] += 1

    superlink.on_message = on_message
    answers = Exchange(superlink.grid(), NODES, deadline_s, **more).ask(CALLS, "train-1")
    assert answers["b"][0].reply == Reply({"number": 1}), "the other hospital is not touched"
    return {name: answer for name, (answer,) in answers.items()}


def test_every_node_is_asked_once_and_answers_once(superlink: ScriptedSuperLink) -> None:
    answers = ask(superlink, lambda message, _: superlink.announce(reply_to(message, replied(7))))
    assert answers["a"].reply == Reply({"number": 7})
    assert len(superlink.pushed) == 2


def test_a_silent_node_is_late_and_the_other_is_heard(superlink: ScriptedSuperLink) -> None:
    answers = ask(superlink, lambda _, __: None, deadline_s=1.0)
    assert answers["a"].error is not None
    assert answers["a"].error.code == LATE
    assert len(superlink.pushed) == 2, "nothing was announced, so it may still be computing"


@pytest.mark.parametrize("end", ["upload", "lose"])
@pytest.mark.usefixtures("impatient")
def test_an_upload_that_rests_is_asked_for_again_and_its_late_end_changes_nothing(
    superlink: ScriptedSuperLink, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first reply is complete, or lost, after the second one was taken and while the other node is awaited."""
    mine: list[str] = []
    resting: list[str] = []  # what rests, once
    read = phase.GridReplies.read
    ended: list[str] = []
    late: list[str] = []
    others: list[str] = []

    def on_message(message: str, node: int) -> None:
        if node == NODES["b"]:
            others.append(message)
        else:
            superlink.announce(reply_to(message, replied(len(mine))), upload=bool(mine))
            resting.extend([message] if not mine else [])
            mine.append(message)

    def watched(replies: phase.GridReplies, identifiers: list[str]) -> list[tuple[str, Any]]:
        complete = read(replies, identifiers)
        ended.extend(identifier for identifier, _ in complete)
        if ended == mine[1:] != [] and not late:
            late.append(mine[0])
            getattr(superlink, end)(mine[0])
        elif mine[0] in ended and others:
            superlink.announce(reply_to(others.pop(), replied(9)))
        return complete

    monkeypatch.setattr(phase.GridReplies, "read", watched)
    monkeypatch.setattr(
        phase.GridReplies, "stalled", lambda _, identifiers, __: [resting.pop()] if resting and identifiers else []
    )
    superlink.on_message = on_message
    answers = Exchange(superlink.grid(), NODES, 60.0).ask(CALLS, "train-1")
    assert {name: answer.reply for name, (answer,) in answers.items()} == {
        "a": Reply({"number": 1}),
        "b": Reply({"number": 9}),
    }
    assert len(superlink.pushed) == 3
    assert ended[:2] == [mine[1], mine[0]], "the late end came between"


def test_a_reply_that_is_lost_each_time_is_asked_for_so_many_times(superlink: ScriptedSuperLink) -> None:
    def hospital(message: str, _: int) -> None:
        superlink.announce(reply_to(message, replied()), upload=False)
        superlink.lose(message)

    answers = ask(superlink, hospital)
    assert answers["a"].error is not None
    assert answers["a"].error.code == "VHT-UNAVAILABLE-NODE"
    assert len(superlink.pushed) == 1 + ATTEMPTS


@pytest.mark.parametrize(("quiet_s", "messages"), [(0.0, 2), (3600.0, 3)])
@pytest.mark.usefixtures("impatient")
def test_what_is_still_arriving_is_not_asked_for_again(
    superlink: ScriptedSuperLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_s: float, messages: int
) -> None:
    """As long as the gateway rings, parts are arriving. The control: where it is quiet, the node is asked again."""
    monkeypatch.setattr(phase, "STALLED_AT_LEAST_S", 0.2)
    monkeypatch.setattr(FileNotification, "quiet_s", lambda _: quiet_s)

    def hospital(message: str, before: int) -> None:
        superlink.announce(reply_to(message, replied(5)), upload=before > 0)
        if quiet_s == 0.0:
            threading.Timer(2.0, superlink.upload, [message]).start()

    answers = ask(superlink, hospital, replies=FileNotification(tmp_path / "replies", 0.01))
    assert answers["a"].reply == Reply({"number": 5})
    assert len(superlink.pushed) >= messages if quiet_s else len(superlink.pushed) == messages


def test_a_changed_reply_is_final(superlink: ScriptedSuperLink) -> None:
    answers = ask(superlink, lambda message, _: superlink.announce(reply_to(message, replied(ok=False))))
    assert answers["a"].error is not None
    assert answers["a"].error.code == "VHT-WIRE-DIGEST"
    assert len(superlink.pushed) == 2


@pytest.mark.parametrize(
    ("call", "failed"),
    [("PushMessages", failure(500)), ("PushObject", failure(500)), ("PushObject", "not stored")],
)
def test_a_superlink_that_fails_for_a_moment_gets_the_same_messages_again(
    superlink: ScriptedSuperLink, call: str, failed: Any
) -> None:
    superlink.failures[call] = [failed] * 2
    answers = ask(superlink, lambda message, _: superlink.announce(reply_to(message, replied(3))))
    assert answers["a"].reply == Reply({"number": 3})
    assert len(superlink.pushed) == 2, "others would leave the first ones behind, without their parts"


def test_a_superlink_that_refuses_is_asked_once(superlink: ScriptedSuperLink) -> None:
    superlink.failures["PushMessages"] = [failure(400)] * 2
    answers = Exchange(superlink.grid(), NODES, 60.0).ask(CALLS, "train-1")
    assert {answer.error.code for (answer,) in answers.values() if answer.error} == {"VHT-UNAVAILABLE-NODE"}
    assert len(superlink.failures["PushMessages"]) == 1


def test_a_stopped_run_waits_for_nobody(superlink: ScriptedSuperLink) -> None:
    answers = Exchange(superlink.grid(), NODES, 3600.0, stopped=lambda: True).ask(CALLS, "train-1")
    assert all(answer.error is not None for (answer,) in answers.values())
