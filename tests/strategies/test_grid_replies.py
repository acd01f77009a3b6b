"""One reply whose parts never come holds up no other; what is no reply to what was asked is nobody's answer."""

import threading
from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, RecordDict
from scripted_superlink import ScriptedSuperLink, failure, reply_to
from small_federation import wait_until

import strategies.grid_replies as grid_replies
from strategies.grid_replies import GridReplies
from vht_federate.errors import WireError


@pytest.fixture
def superlink() -> Iterator[ScriptedSuperLink]:
    made = ScriptedSuperLink()
    yield made
    made.parts.clear()  # whoever still waits for a part gives up


@pytest.fixture
def silent_and_whole(superlink: ScriptedSuperLink) -> ScriptedSuperLink:
    superlink.announce(reply_to("silent"), upload=False)
    superlink.announce(reply_to("whole", RecordDict({"value": ConfigRecord({"value": 2})})))
    return superlink


def read_one(replies: GridReplies, *identifiers: str) -> object:
    """The first reply that is complete."""
    read: list[tuple[str, object]] = []
    wait_until(lambda: bool(read.extend(replies.read(identifiers)) or read), "a reply", 60)
    ((identifier, reply),) = read
    assert identifier in identifiers
    return reply


def test_a_reply_is_read_while_another_hospitals_parts_never_come(silent_and_whole: ScriptedSuperLink) -> None:
    replies = GridReplies(silent_and_whole.grid())
    reply = read_one(replies, "silent", "whole")
    assert reply.content["value"] == ConfigRecord({"value": 2})  # type: ignore[attr-defined]
    assert len(silent_and_whole.confirmed) == 1
    wait_until(lambda: replies.stalled(["silent"], 0.2) == ["silent"], "the other counting as stalled", 60)
    assert replies.stalled(["silent", "never announced"], 3600) == []
    replies.close()
    assert read_one(replies, "silent") is None, "its thread ended"


def test_flowers_own_way_waits_for_the_silent_hospital(silent_and_whole: ScriptedSuperLink) -> None:
    """The control: without ``GridReplies`` the same SuperLink keeps the whole reply from whoever asks."""
    grid, read = silent_and_whole.grid(), threading.Event()

    def pull() -> None:
        list(grid.pull_messages(["silent", "whole"]))
        read.set()

    threading.Thread(target=pull, daemon=True).start()
    wait_until(lambda: silent_and_whole.all_announced, "both being announced", 60)
    assert not read.wait(3)


def test_a_reply_that_is_not_to_be_had_is_named_and_the_others_are_read(silent_and_whole: ScriptedSuperLink) -> None:
    silent_and_whole.lose("silent")
    replies, read = GridReplies(silent_and_whole.grid()), {}
    wait_until(lambda: read.update(replies.read(["silent", "whole"])) or len(read) == 2, "both replies", 60)
    assert read["silent"] is None
    assert read["whole"] is not None


@pytest.mark.parametrize("call", ["PullMessages", "PullObject", "ConfirmMessageReceived"])
@pytest.mark.parametrize("failed", [failure(500), failure(503)])
def test_a_superlink_that_fails_for_a_moment_costs_no_reply(
    superlink: ScriptedSuperLink, call: str, failed: Exception
) -> None:
    superlink.failures[call] = [failed] * 2
    superlink.announce(reply_to("whole"))
    assert read_one(GridReplies(superlink.grid()), "whole") is not None


def test_messages_that_answer_nothing_are_left_alone_however_many(
    superlink: ScriptedSuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[str] = []
    monkeypatch.setattr(GridReplies, "_gather", lambda _, answered, *__: gathered.append(answered))
    for number in range(200):
        superlink.announce(reply_to("", RecordDict({"value": ConfigRecord({"value": number})})), upload=False)
    superlink.announce(reply_to("asked"))
    replies = GridReplies(superlink.grid())
    assert replies.read(["asked"]) == []
    assert superlink.all_announced
    wait_until(lambda: bool(gathered), "a thread for the reply", 60)
    assert gathered == ["asked"]


def test_a_reply_in_too_many_parts_is_refused_before_one_is_pulled(superlink: ScriptedSuperLink) -> None:
    many = RecordDict({f"r{number}": ConfigRecord({"value": number}) for number in range(grid_replies.MAX_PARTS)})
    superlink.announce(reply_to("huge", many), upload=False)
    reply = read_one(GridReplies(superlink.grid()), "huge")
    assert isinstance(reply, WireError)
    assert reply.code == "VHT-WIRE-REPLY"


def test_a_reply_of_too_many_bytes_is_refused(superlink: ScriptedSuperLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_replies, "MAX_BYTES", 1000)
    superlink.announce(reply_to("huge", RecordDict({"value": ConfigRecord({"value": b"x" * 2000})})))
    assert isinstance(read_one(GridReplies(superlink.grid()), "huge"), WireError)


def test_what_cannot_be_read_is_no_lost_reply(superlink: ScriptedSuperLink) -> None:
    superlink.announce(reply_to("nonsense"))
    superlink.parts |= dict.fromkeys(superlink.parts, b"nonsense")
    assert isinstance(read_one(GridReplies(superlink.grid()), "nonsense"), WireError)
