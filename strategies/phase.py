"""One phase of a run on Flower's grid: a message per node that approved, replies until all came or the deadline."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.app import Message, MessageType

from strategies.file_notification import Doorbell
from strategies.message_content import Answer, pack_calls, replies_of
from vht_federate.errors import UnavailableError, VhtError, WireError
from vht_federate.framing import Call

if TYPE_CHECKING:
    from flwr.serverapp import Grid

__all__ = ["Exchange"]

POLL_S = 0.25
AT_LEAST_EVERY_S = 1.0
SETTLE_S = 0.1  # replies of several nodes, and the parts of one, come close together
LATE = "VHT-UNAVAILABLE-DEADLINE"


@dataclass(frozen=True)
class Exchange:
    """Sends calls to nodes and gathers their answers."""

    grid: "Grid"
    nodes: Mapping[str, int]  # name -> Flower node id: the allow-list
    deadline_s: float
    doorbell: Doorbell | None = None  # to ring when messages wait
    replies: Doorbell | None = None  # rings when a reply may be there; without it the grid is asked more often
    stopped: Callable[[], bool] = lambda: False

    def ask(self, calls: Mapping[str, Sequence[Call]], phase: str) -> dict[str, list[Answer]]:
        """Each node's answers to its calls, in order. Nothing is raised for a node: its answers carry the error.

        Raises KeyError for a node outside the allow-list.
        """
        asked: dict[str, str] = {}
        messages = [
            Message(
                pack_calls(mine, deadline_s=self.deadline_s),
                self.nodes[name],
                MessageType.QUERY,
                ttl=self.deadline_s + 60.0,
                group_id=phase,
            )
            for name, mine in calls.items()
        ]
        identifiers = self.grid.push_messages(messages)
        if self.doorbell:
            self.doorbell.ring()
        answers: dict[str, list[Answer]] = {}
        for (name, mine), identifier in zip(calls.items(), identifiers, strict=True):
            if identifier:
                asked[identifier] = name
            else:
                answers[name] = [_failed("the SuperLink refused a message to this node")] * len(mine)
        self._gather(asked, calls, answers)
        return {name: answers[name] for name in calls}

    def _gather(
        self, asked: dict[str, str], calls: Mapping[str, Sequence[Call]], answers: dict[str, list[Answer]]
    ) -> None:
        end = time.monotonic() + self.deadline_s
        while asked and time.monotonic() < end and not self.stopped():
            rang = self.replies.last() if self.replies else 0
            for reply in self.grid.pull_messages(list(asked)):
                name = asked.pop(reply.metadata.reply_to_message_id, None)
                if name is not None:
                    answers[name] = _answers_of(reply, len(calls[name]))
            if asked:
                self._pause(rang)
        for name in asked.values():
            # Whoever did not answer in time is out; a reply that comes later is never read.
            late = UnavailableError(f"no answer within {self.deadline_s:g} s", code=LATE)
            answers[name] = [Answer(None, error=late)] * len(calls[name])

    def _pause(self, rang: int) -> None:
        if self.replies:
            self.replies.wait_here(rang, AT_LEAST_EVERY_S)
            time.sleep(SETTLE_S)
        else:
            time.sleep(POLL_S)


def _failed(why: str) -> Answer:
    return Answer(None, error=UnavailableError(why, code="VHT-UNAVAILABLE-NODE"))


def _answers_of(reply: Message, expected: int) -> list[Answer]:
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
