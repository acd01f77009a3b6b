"""Replies on Flower's grid, each read on its own: one whose parts never come holds up no other.

A SuperNode announces a reply first and uploads its parts after that. Flower's ``Grid.pull_messages`` waits for every
part of every reply that was announced, so one hospital that dies in the middle of its upload, or never means to
upload, would keep the answers of all others from the run for three minutes, which is beyond a round's deadline.
"""

import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as AnnouncedMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid.http_grid import HttpGrid

from vht_federate.errors import WireError

__all__ = ["GridReplies"]

LOOK_AGAIN_S, LOOK_AT_LEAST_EVERY_S = 0.05, 1.0  # for a part that is still on its way
MAX_PARTS = 64  # a message, its records, and one part for each call
MAX_BYTES = 1 << 30


@dataclass
class GridReplies:
    """The replies to messages of one run. Each announced reply has a thread that gathers its parts."""

    grid: HttpGrid
    _complete: "SimpleQueue[tuple[str, Message | WireError | None]]" = field(default_factory=SimpleQueue)
    _last_part: dict[str, float] = field(default_factory=dict)  # message answered -> when its upload last got on
    _closed: threading.Event = field(default_factory=threading.Event)

    def read(self, identifiers: Collection[str]) -> list[tuple[str, Message | WireError | None]]:
        """Replies that are complete by now, as (identifier of the message answered, reply).

        The reply is None where its parts are not to be had, a WireError VHT-WIRE-REPLY where they make no reply.
        Beside the ``identifiers`` of this call it may be those of an earlier one that are answered. A SuperLink that
        fails for a moment has no news.
        """
        if unannounced := [identifier for identifier in identifiers if identifier not in self._last_part]:
            self._gather_announced(unannounced)
        complete = []
        while True:
            try:
                complete.append(self._complete.get_nowait())
            except Empty:
                return complete

    def stalled(self, identifiers: Collection[str], after_s: float) -> list[str]:
        """Those that were announced, and of which no further part has come for ``after_s`` seconds."""
        now = time.monotonic()
        return [identifier for identifier in identifiers if now - self._last_part.get(identifier, now) > after_s]

    def close(self) -> None:
        """Stop waiting for parts; what is still on its way is never read."""
        self._closed.set()

    def _gather_announced(self, identifiers: list[str]) -> None:
        try:
            announced = self.grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=identifiers))
        except (httpx.HTTPError, ValueError):
            return
        for message, tree in zip(announced.messages_list, announced.message_object_trees, strict=True):
            answered = message.metadata.reply_to_message_id
            if answered in identifiers and answered not in self._last_part:  # Flower adds messages that answer nothing
                self._last_part[answered] = time.monotonic()
                threading.Thread(target=self._gather, args=(answered, message, tree), daemon=True).start()

    def _gather(self, answered: str, message: AnnouncedMessage, tree: ObjectTree) -> None:
        reply: Message | WireError | None
        try:
            reply = self._whole(answered, message.metadata.message_id, tree)
        except WireError as error:
            reply = error
        except Exception:  # whatever a node uploaded, or did not: it concerns this reply alone
            reply = None
        self._complete.put((answered, reply))

    def _whole(self, answered: str, identifier: str, tree: ObjectTree) -> Message:
        """Raises WireError VHT-WIRE-REPLY, and whatever Flower raises where a part is not to be had."""
        client, node, run = self.grid._runtime_client, self.grid.node, self.grid.run.run_id
        pull = make_pull_object_fn_protobuf(client.PullObject, node, run)
        parts = [subtree.object_id for subtree in iterate_object_tree(tree)]
        if len(parts) > MAX_PARTS:
            raise WireError(f"a reply has at most {MAX_PARTS} parts", code="VHT-WIRE-REPLY")
        sizes: list[int] = []

        def part(object_id: str) -> bytes:
            if self._closed.is_set():
                raise ObjectPullError(object_id, "nobody waits for it any more")
            try:
                content: bytes = pull(object_id)
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500:
                    raise
                raise ObjectUnavailableError(object_id) from error
            sizes.append(len(content))
            if sum(sizes) > MAX_BYTES:
                raise WireError(f"a reply has at most {MAX_BYTES >> 20} MiB", code="VHT-WIRE-REPLY")
            self._last_part[answered] = time.monotonic()
            return content

        contents = pull_objects(parts, part, initial_backoff=LOOK_AGAIN_S, backoff_cap=LOOK_AT_LEAST_EVERY_S)
        try:
            reply = inflate_object_from_contents(identifier, contents)
        except Exception as error:
            raise WireError("a reply cannot be read", code="VHT-WIRE-REPLY") from error
        if not isinstance(reply, Message):
            raise WireError("this is no reply", code="VHT-WIRE-REPLY")
        with suppress(httpx.HTTPError):
            client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=identifier)
            )
        return reply
