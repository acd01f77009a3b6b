"""One phase of a run on Flower's grid: a message per node that approved, replies until all came or the deadline."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx
from flwr.app import Message, MessageType
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.superlink.grid.http_grid import HttpGrid

from strategies.file_notification import FileNotification
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
STALLED_SHARE, STALLED_AT_LEAST_S = 0.25, 15.0  # of the deadline: a reply of which nothing came for so long


@dataclass
class _Asked:
    """One node within one phase: its messages, and the answers once there are some."""

    name: str
    calls: Sequence[Call]
    attempts: int = 0
    sent_at: float = 0.0
    waiting: set[str] = field(default_factory=set)  # identifiers of messages without an answer
    answers: list[Answer] | None = None

    def take(self, identifier: str, reply: Message | WireError | None) -> bool:
        """Keep a reply. True where it was lost on its way and no other is awaited.

        Nothing changes for a message that nobody waits for: another with the same calls was answered first.
        """
        if identifier not in self.waiting:
            return False
        self.waiting.discard(identifier)
        lost = reply is None or (
            isinstance(reply, Message) and reply.has_error() and reply.error.code in LOST_ON_ITS_WAY
        )
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
    message_notification: FileNotification | None = None  # to touch when messages wait
    replies: FileNotification | None = (
        None  # touched when a reply may be there; without it the grid is asked more often
    )
    stopped: Callable[[], bool] = lambda: False

    def ask(self, calls: Mapping[str, Sequence[Call]], phase: str) -> dict[str, list[Answer]]:
        """Each node's answers to its calls, in order. Nothing is raised for a node: its answers carry the error.

        Raises KeyError for a node outside the allow-list.
        """
        end = time.monotonic() + self.deadline_s
        nodes = {name: _Asked(name, node_calls) for name, node_calls in calls.items()}
        incoming = GridReplies(self.grid)
        try:
            self._gather(list(nodes.values()), incoming, phase, end)
        finally:
            incoming.close()
        # Whoever did not answer in time is out; a reply that comes later is never read.
        late = Answer(None, error=UnavailableError(f"no answer within {self.deadline_s:g} s", code=LATE))
        return {name: node.answers or [late] * len(node.calls) for name, node in nodes.items()}

    def _gather(self, nodes: list[_Asked], incoming: GridReplies, phase: str, end: float) -> None:
        stalled_s = max(STALLED_AT_LEAST_S, STALLED_SHARE * self.deadline_s)
        recipients = self._send(nodes, phase, end)  # identifier of a message -> whom it asks
        while (waiting := self._waiting(recipients)) and time.monotonic() < end and not self.stopped():
            notified = self.replies.last() if self.replies else 0
            retries = {}
            for identifier, reply in incoming.read(waiting):
                if identifier in recipients and recipients[identifier].take(identifier, reply):
                    retries[recipients[identifier].name] = recipients[identifier]
            if self.replies is None or self.replies.quiet_s() > stalled_s:
                for identifier in incoming.stalled(self._waiting(recipients), stalled_s):
                    if time.monotonic() - recipients[identifier].sent_at > stalled_s:
                        retries[recipients[identifier].name] = recipients[identifier]
            if retries := {name: node for name, node in retries.items() if node.attempts < ATTEMPTS}:
                recipients |= self._send(list(retries.values()), phase, end)
            if self._waiting(recipients):
                self._pause(notified)

    @staticmethod
    def _waiting(recipients: Mapping[str, _Asked]) -> list[str]:
        return [identifier for identifier, node in recipients.items() if identifier in node.waiting]

    def _send(self, nodes: Sequence[_Asked], phase: str, end: float) -> dict[str, _Asked]:
        """A message to each of these nodes, by its identifier."""
        left_s = max(1.0, end - time.monotonic())
        messages = [
            Message(
                pack_calls(node.calls, deadline_s=left_s),
                self.nodes[node.name],
                MessageType.QUERY,
                ttl=left_s + 60.0,
                group_id=phase,
            )
            for node in nodes
        ]
        identifiers = self._pushed(messages, end)
        if self.message_notification:
            self.message_notification.notify()
        for node, identifier in zip(nodes, identifiers, strict=True):
            node.attempts, node.sent_at = node.attempts + 1, time.monotonic()
            if identifier:
                node.waiting.add(identifier)
            elif not node.waiting:
                node.answers = [_failed("the SuperLink refused a message to this node")] * len(node.calls)
        return {identifier: node for node, identifier in zip(nodes, identifiers, strict=True) if identifier}

    def _pushed(self, messages: Sequence[Message], end: float) -> list[str | None]:
        """Identifiers of the messages, None for a refused one.

        Where the SuperLink fails for a moment, the same messages are pushed again until ``end``: others with the same
        calls would leave the first ones there, without their parts, for nodes to wait for.
        """
        refused: list[str | None] = [None] * len(messages)
        while True:
            try:
                return list(self.grid.push_messages(messages)) or refused
            except (httpx.HTTPError, ObjectPushError) as error:
                final = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
                if final or time.monotonic() >= end or self.stopped():
                    return refused
                time.sleep(POLL_S)

    def _pause(self, notified: int) -> None:
        if self.replies:
            self.replies.wait_here(notified, AT_LEAST_EVERY_S)
            time.sleep(SETTLE_S)
        else:
            time.sleep(POLL_S)


def _failed(why: str) -> Answer:
    return Answer(None, error=UnavailableError(why, code="VHT-UNAVAILABLE-NODE"))


def _in_words(code: int) -> str:
    if code == ErrorCode.NODE_UNAVAILABLE:
        return "its SuperNode is not connected to this coordinator"
    if code in LOST_ON_ITS_WAY:
        return "its reply was lost on its way"
    return f"its courier failed (Flower's error {code})"


def _answers_of(reply: Message | WireError | None, expected: int) -> list[Answer]:
    if reply is None:
        return [_failed("its reply was lost on its way")] * expected
    if isinstance(reply, WireError):
        return [Answer(None, error=reply)] * expected
    if reply.has_error():
        return [_failed(_in_words(reply.error.code))] * expected
    try:
        if len(reply.content) != expected:  # a courier that read no call answers once
            return replies_of(reply.content, 1) * expected
        return replies_of(reply.content, expected)
    except VhtError as error:
        return [Answer(None, error=error)] * expected
    except Exception as error:
        broken = WireError(f"a reply cannot be read ({type(error).__name__})", code="VHT-WIRE-REPLY")
        return [Answer(None, error=broken)] * expected
