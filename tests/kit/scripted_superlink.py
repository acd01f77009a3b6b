"""A SuperLink in memory whose moments of failure, and whose hospitals' manners, a test writes down."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from flwr.app import ConfigRecord, Message, MessageType, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

RUN = 1


def reply_to(identifier: str, content: RecordDict | None = None) -> Message:
    """A hospital's reply to the message ``identifier``."""
    metadata = Metadata(
        run_id=RUN, message_id="", src_node_id=7, dst_node_id=1, reply_to_message_id=identifier, group_id="train-1",
        created_at=time.time(), ttl=60.0, message_type=MessageType.QUERY,
    )  # fmt: skip
    return make_message(metadata=metadata, content=content or RecordDict({"value": ConfigRecord({"value": 1})}))


def failure(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://superlink")
    return httpx.HTTPStatusError("failed", request=request, response=httpx.Response(status, request=request))


@dataclass
class ScriptedSuperLink:
    """Answers as a SuperLink's Runtime API does, at the place of Flower's client.

    ``on_message`` is what hospitals do about a message, given its identifier and node. ``failures``: for each call,
    what it raises or answers first.
    """

    on_message: Callable[[str, int], None] = lambda _, __: None
    failures: dict[str, list[Any]] = field(default_factory=dict)
    parts: dict[str, bytes] = field(default_factory=dict)  # an empty one is not uploaded yet
    confirmed: list[str] = field(default_factory=list)
    pushed: list[str] = field(default_factory=list)
    _announced: list[tuple[str, Any, Any]] = field(default_factory=list)
    _withheld: dict[str, dict[str, bytes]] = field(default_factory=dict)
    _session: list[tuple[str, int]] = field(default_factory=list)

    def announce(self, reply: Message, *, upload: bool = True) -> None:
        """As a hospital: say that there is a reply, and upload its parts unless told otherwise."""
        answered = reply.metadata.reply_to_message_id
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            parts = {part: content.deflate() for part, content in get_all_nested_objects(reply).items()}
            self.parts |= dict.fromkeys(parts, b"")
            self._withheld[answered] = parts
            self._announced.append((answered, message_to_proto(reply), get_object_tree(reply)))
        if upload:
            self.upload(answered)

    def upload(self, answered: str) -> None:
        self.parts |= self._withheld.pop(answered)

    def lose(self, answered: str) -> None:
        """The session of an upload has expired: nobody knows its parts any more."""
        for part in self._withheld.pop(answered):
            self.parts.pop(part)

    @property
    def all_announced(self) -> bool:
        return not self._announced

    def _fails(self, call: str) -> Any:
        if waiting := self.failures.get(call):
            first = waiting.pop(0)
            if isinstance(first, Exception):
                raise first
            return first
        return None

    def PushMessages(self, request: PushAppMessagesRequest) -> PushAppMessagesResponse:  # noqa: N802
        self._fails("PushMessages")
        self._session = [
            (message.metadata.message_id, message.metadata.dst_node_id) for message in request.messages_list
        ]
        identifiers = [identifier for identifier, _ in self._session]
        self.pushed += [identifier for identifier in identifiers if identifier not in self.pushed]
        parts = [part.object_id for tree in request.message_object_trees for part in (tree, *tree.children)]
        return PushAppMessagesResponse(message_ids=identifiers, objects_to_push=parts[:1], session_id="session")

    def PushObject(self, _: PushObjectRequest) -> PushObjectResponse:  # noqa: N802
        stored = self._fails("PushObject")
        if stored is None:
            for identifier, node in self._session:
                self.on_message(identifier, node)
        return PushObjectResponse(stored=stored is None)

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:  # noqa: N802
        """Those that were asked for, once each, and those that answer nothing: Flower adds them for its agents."""
        self._fails("PullMessages")
        pulled = [entry for entry in self._announced if entry[0] in request.message_ids or not entry[0]]
        self._announced = [entry for entry in self._announced if entry not in pulled]
        return PullAppMessagesResponse(
            messages_list=[message for _, message, _ in pulled], message_object_trees=[tree for _, _, tree in pulled]
        )

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802
        self._fails("PullObject")
        content = self.parts.get(request.object_id)
        return PullObjectResponse(
            object_found=content is not None, object_available=bool(content), object_content=content or b""
        )

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> None:  # noqa: N802
        self._fails("ConfirmMessageReceived")
        self.confirmed.append(request.message_object_id)

    def grid(self) -> HttpGrid:
        """Flower's own grid, with this in the place of its client."""
        grid = HttpGrid("127.0.0.1:1", insecure=True, token="token")
        grid.set_run(Run.create_empty(RUN))
        grid._client = self
        return grid
