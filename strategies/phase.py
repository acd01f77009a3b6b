"""One phase of a run on Flower's grid: a message per node that approved, replies until all came or the deadline."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx
from flwr.app import Message, MessageType
from flwr.common.constant import ErrorCode
from flwr.superlink.grid.http_grid import HttpGrid

from strategies.file_notification import Doorbell
from strategies.grid_replies import GridReplies
from strategies.message_content import Answer, pack_calls, replies_of
from vht_federate.errors import UnavailableError, VhtError, WireError
from vht_federate.framing import Call

__all__ = ["Exchange"]

POLL_S = 0.25
AT_LEAST_EVERY_S = 1.0
SETTLE_S = 0.1  # replies of several nodes, and the parts of one, come close together
LATE = "VHT-UNAVAILABLE-DEADLINE"
ATTEMPTS = 3  # messages with the same calls to one node
LOST_ON_ITS_WAY = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
STALLED_SHARE, STALLED_AT_LEAST_S = 0.25, 15.0  # of the deadline: an upload that rests so long was given up


@dataclass
class _Asked:
    """One node within one phase: its messages, and the answers once there are some."""

    calls: Sequence[Call]
    attempts: int = 0
    sent_at: float = 0.0
    waiting: set[str] = field(default_factory=set)  # identifiers of messages without an answer
    answers: list[Answer] | None = None

    def take(self, identifier: str, reply: Message | None) -> bool:
        """Keep a reply. True where it was lost on its way and no other is awaited."""
        if identifier not in self.waiting:
            return False
        self.waiting.discard(identifier)
        lost = reply is None or (reply.has_error() and reply.error.code in LOST_ON_ITS_WAY)
        if not lost:
            self.waiting.clear()
        self.answers = _answers_of(reply, len(self.calls))
        return lost and not self.waiting


@dataclass(frozen=True)
class Exchange:
    """Sends calls to nodes and gathers their answers.

    A reply that is lost on its way is asked for again within the deadline: an enclave answers an exact retry from its
    own record, so that costs no budget.
    """

    grid: HttpGrid
    nodes: Mapping[str, int]  # name -> Flower node id: the allow-list
    deadline_s: float
    doorbell: Doorbell | None = None  # to ring when messages wait
    replies: Doorbell | None = None  # rings when a reply may be there; without it the grid is asked more often
    stopped: Callable[[], bool] = lambda: False

    def ask(self, calls: Mapping[str, Sequence[Call]], phase: str) -> dict[str, list[Answer]]:
        """Each node's answers to its calls, in order. Nothing is raised for a node: its answers carry the error.

        Raises KeyError for a node outside the allow-list.
        """
        end = time.monotonic() + self.deadline_s
        asked = {name: _Asked(mine) for name, mine in calls.items()}
        self._send(asked, phase, end)
        incoming = GridReplies(self.grid)
        try:
            self._gather(asked, incoming, phase, end)
        finally:
            incoming.close()
        # Whoever did not answer in time is out; a reply that comes later is never read.
        late = Answer(None, error=UnavailableError(f"no answer within {self.deadline_s:g} s", code=LATE))
        return {name: one.answers or [late] * len(one.calls) for name, one in asked.items()}

    def _send(self, asked: Mapping[str, _Asked], phase: str, end: float) -> None:
        """A message to each of these nodes."""
        identifiers = self._pushed(asked, phase, end)
        if self.doorbell:
            self.doorbell.ring()
        for one, identifier in zip(asked.values(), identifiers, strict=True):
            one.attempts, one.sent_at = one.attempts + 1, time.monotonic()
            if identifier:
                one.waiting.add(identifier)
            elif not one.waiting:
                one.answers = [_failed("the SuperLink refused a message to this node")] * len(one.calls)

    def _pushed(self, asked: Mapping[str, _Asked], phase: str, end: float) -> list[str | None]:
        """Identifiers of the messages; None for a refused one. A SuperLink that fails for a moment is asked again."""
        while True:
            left_s = max(1.0, end - time.monotonic())
            messages = [
                Message(
                    pack_calls(one.calls, deadline_s=left_s),
                    self.nodes[name],
                    MessageType.QUERY,
                    ttl=left_s + 60.0,
                    group_id=phase,
                )
                for name, one in asked.items()
            ]
            try:
                return list(self.grid.push_messages(messages)) or [None] * len(messages)
            except httpx.HTTPStatusError:
                if time.monotonic() >= end or self.stopped():
                    return [None] * len(messages)
                time.sleep(POLL_S)

    def _gather(self, asked: Mapping[str, _Asked], incoming: GridReplies, phase: str, end: float) -> None:
        stalled_s = max(STALLED_AT_LEAST_S, STALLED_SHARE * self.deadline_s)
        while time.monotonic() < end and not self.stopped():
            waiting = {identifier: name for name, one in asked.items() for identifier in one.waiting}
            if not waiting:
                return
            rang = self.replies.last() if self.replies else 0
            lost = {
                waiting[identifier]
                for identifier, reply in incoming.read(waiting)
                if asked[waiting[identifier]].take(identifier, reply)
            }
            stalled = {
                waiting[identifier]
                for identifier in incoming.stalled(waiting, stalled_s)
                if time.monotonic() - asked[waiting[identifier]].sent_at > stalled_s
            }
            if again := {name: asked[name] for name in lost | stalled if asked[name].attempts < ATTEMPTS}:
                self._send(again, phase, end)
            if any(one.waiting for one in asked.values()):
                self._pause(rang)

    def _pause(self, rang: int) -> None:
        if self.replies:
            self.replies.wait_here(rang, AT_LEAST_EVERY_S)
            time.sleep(SETTLE_S)
        else:
            time.sleep(POLL_S)


def _failed(why: str) -> Answer:
    return Answer(None, error=UnavailableError(why, code="VHT-UNAVAILABLE-NODE"))


def _answers_of(reply: Message | None, expected: int) -> list[Answer]:
    if reply is None:
        return [_failed("its reply was lost on its way")] * expected
    if reply.has_error():
        return [_failed(f"Flower reports error {reply.error.code} for this node")] * expected
    try:
        if len(reply.content) != expected:  # a courier that read no call answers once
            return replies_of(reply.content, 1) * expected
        return replies_of(reply.content, expected)
    except VhtError as error:
        return [Answer(None, error=error)] * expected
    except Exception as error:
        broken = WireError(f"a reply cannot be read ({type(error).__name__})", code="VHT-WIRE-REPLY")
        return [Answer(None, error=broken)] * expected
