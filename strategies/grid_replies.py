"""Replies on Flower's grid, each read on its own: one whose parts never come holds up no other.

A SuperNode announces a reply first and uploads its parts after that. Flower's ``Grid.pull_messages`` waits for every
part of every reply that was announced, so one hospital that dies in the middle of its upload, or never means to
upload, would keep the answers of all others from the run for three minutes, which is beyond a round's deadline.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as AnnouncedMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects
from flwr.superlink.grid.http_grid import HttpGrid

__all__ = ["GridReplies"]

LOOK_AGAIN_S, LOOK_AT_LEAST_EVERY_S = 0.05, 1.0  # for a part that is still on its way


@dataclass
class GridReplies:
    """The replies to messages of one run. Each announced reply has a thread that gathers its parts."""

    grid: HttpGrid
    _complete: "SimpleQueue[tuple[str, Message | None]]" = field(default_factory=SimpleQueue)
    _last_part: dict[str, float] = field(default_factory=dict)  # message answered -> when its upload last got on
    _closed: threading.Event = field(default_factory=threading.Event)

    def read(self, identifiers: Iterable[str]) -> list[tuple[str, Message | None]]:
        """Replies that are complete by now, as (identifier of the message answered, reply).

        The reply is None where its parts are not to be had. A SuperLink that fails for a moment has no news.
        """
        if wanted := [one for one in identifiers if one not in self._last_part]:
            self._gather_announced(wanted)
        complete = []
        while True:
            try:
                complete.append(self._complete.get_nowait())
            except Empty:
                return complete

    def stalled(self, identifiers: Iterable[str], after_s: float) -> list[str]:
        """Those that were announced, and of which no further part has come for ``after_s`` seconds."""
        now = time.monotonic()
        return [one for one in identifiers if now - self._last_part.get(one, now) > after_s]

    def close(self) -> None:
        """Stop waiting for parts; what is still on its way is never read."""
        self._closed.set()

    def _gather_announced(self, identifiers: list[str]) -> None:
        try:
            announced = self.grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=identifiers))
        except (httpx.HTTPError, ValueError):
            return
        for message, tree in zip(announced.messages_list, announced.message_object_trees, strict=True):
            self._last_part[message.metadata.reply_to_message_id] = time.monotonic()
            threading.Thread(target=self._gather, args=(message, tree), daemon=True).start()

    def _gather(self, message: AnnouncedMessage, tree: ObjectTree) -> None:
        answered, identifier = message.metadata.reply_to_message_id, message.metadata.message_id
        client, node, run = self.grid._runtime_client, self.grid.node, self.grid.run.run_id
        pull = make_pull_object_fn_protobuf(client.PullObject, node, run)

        def part(object_id: str) -> bytes:
            if self._closed.is_set():
                raise ObjectPullError(object_id, "nobody waits for it any more")
            content: bytes = pull(object_id)
            self._last_part[answered] = time.monotonic()
            return content

        try:
            parts = [one.object_id for one in iterate_object_tree(tree)]
            contents = pull_objects(parts, part, initial_backoff=LOOK_AGAIN_S, backoff_cap=LOOK_AT_LEAST_EVERY_S)
            client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=identifier)
            )
            reply = inflate_object_from_contents(identifier, contents)
        except Exception:  # whatever a node uploaded: it concerns this reply alone
            reply = None
        self._complete.put((answered, reply if isinstance(reply, Message) else None))
