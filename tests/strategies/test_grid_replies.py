"""One reply whose parts never come holds up no other."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, MessageType, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid
from small_federation import wait_until

from strategies.grid_replies import GridReplies


def reply_to(identifier: str, value: int) -> Message:
    """A hospital's reply to the message ``identifier``."""
    metadata = Metadata(
        run_id=1, message_id="", src_node_id=7, dst_node_id=1, reply_to_message_id=identifier, group_id="train-1",
        created_at=time.time(), ttl=60.0, message_type=MessageType.QUERY,
    )  # fmt: skip
    return make_message(metadata=metadata, content=RecordDict({"value": ConfigRecord({"value": value})}))


class SuperLink:
    """Announces replies once each, as Flower's does; parts of those in ``withheld`` are never there."""

    def __init__(self, replies: dict[str, Message], withheld: frozenset[str] = frozenset()) -> None:
        self.parts: dict[str, bytes] = {}
        self.announced: dict[str, Any] = {}
        self.confirmed: list[str] = []
        self.broken = False
        for identifier, reply in replies.items():
            with no_object_id_recompute():
                reply.metadata.__dict__["_message_id"] = reply.object_id
                self.announced[identifier] = message_to_proto(reply), get_object_tree(reply)
                for part, content in get_all_nested_objects(reply).items():
                    self.parts[part] = b"" if identifier in withheld else content.deflate()

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:  # noqa: N802
        if self.broken:
            raise ValueError("half an answer")
        found = [self.announced.pop(one) for one in request.message_ids if one in self.announced]
        return PullAppMessagesResponse(
            messages_list=[message for message, _ in found], message_object_trees=[tree for _, tree in found]
        )

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802
        content = self.parts.get(request.object_id)
        return PullObjectResponse(
            object_found=content is not None, object_available=bool(content), object_content=content or b""
        )

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> None:  # noqa: N802
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def grid_of() -> Iterator[Callable[[SuperLink], HttpGrid]]:
    made = []

    def make(superlink: SuperLink) -> HttpGrid:
        grid = HttpGrid("127.0.0.1:1", insecure=True, token="token")
        grid.set_run(Run.create_empty(1))
        grid._client = superlink
        made.append(superlink)
        return grid

    yield make
    for superlink in made:  # whoever still waits for a part gives up
        superlink.parts.clear()


def test_a_reply_is_read_while_another_hospitals_parts_never_come(grid_of: Callable[[SuperLink], HttpGrid]) -> None:
    superlink = SuperLink({"silent": reply_to("silent", 1), "whole": reply_to("whole", 2)}, frozenset({"silent"}))
    replies, read = GridReplies(grid_of(superlink)), []
    wait_until(lambda: bool(read.extend(replies.read({"silent", "whole"})) or read), "the whole reply", 30)
    ((identifier, reply),) = read
    assert identifier == "whole"
    assert reply is not None
    assert reply.content["value"] == ConfigRecord({"value": 2})
    assert len(superlink.confirmed) == 1
    wait_until(lambda: replies.stalled({"silent"}, 0.2) == ["silent"], "the other counting as stalled", 30)
    assert replies.stalled({"silent", "never announced"}, 3600) == []
    replies.close()
    wait_until(lambda: replies.read({"silent"}) == [("silent", None)], "its thread's end", 30)


def test_flowers_own_way_waits_for_the_silent_hospital(grid_of: Callable[[SuperLink], HttpGrid]) -> None:
    """The control: without ``GridReplies`` the same SuperLink keeps the whole reply from whoever asks."""
    superlink = SuperLink({"silent": reply_to("silent", 1), "whole": reply_to("whole", 2)}, frozenset({"silent"}))
    grid, read = grid_of(superlink), threading.Event()

    def pull() -> None:
        list(grid.pull_messages(["silent", "whole"]))
        read.set()

    threading.Thread(target=pull, daemon=True).start()
    wait_until(lambda: not superlink.announced, "both being announced", 30)
    assert not read.wait(3)


def test_a_reply_that_is_not_to_be_had_is_named_and_the_others_are_read(
    grid_of: Callable[[SuperLink], HttpGrid],
) -> None:
    superlink = SuperLink({"gone": reply_to("gone", 1), "whole": reply_to("whole", 2)})
    gone = superlink.announced["gone"][1].object_id
    superlink.parts.pop(gone)
    replies, read = GridReplies(grid_of(superlink)), {}
    wait_until(lambda: read.update(replies.read({"gone", "whole"})) or len(read) == 2, "both replies", 30)
    assert read["gone"] is None
    assert read["whole"] is not None


def test_a_superlink_that_fails_for_a_moment_has_no_news(grid_of: Callable[[SuperLink], HttpGrid]) -> None:
    superlink = SuperLink({"whole": reply_to("whole", 2)})
    superlink.broken = True
    replies = GridReplies(grid_of(superlink))
    assert replies.read({"whole"}) == []
    superlink.broken = False
    wait_until(lambda: [one for one, _ in replies.read({"whole"})] == ["whole"], "the reply", 30)
