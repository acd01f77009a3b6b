"""A hospital whose SuperNode is played by a test: Flower's own connection, at the test's pace."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response
from small_federation import SmallFederation, supernode_key

from strategies.courier import ENCLAVE_DIRECTORY, carry


@dataclass
class HandPlayedNode:
    """One enrolled node; ``enclaves`` is where the enclaves listen that answer for it."""

    node: int
    enclaves: Path
    _connection: Any

    def receive(self) -> Message:
        """The next message to this node, whole."""
        _, receive, _, _, _, pull_object, _, confirm = self._connection
        while (came := receive()) is None:  # the coordinator holds the question for some seconds
            time.sleep(0.5)
        message, tree = came
        run, identifier = message.metadata.run_id, message.metadata.message_id
        parts = [one.object_id for one in iterate_object_tree(tree)]
        contents = pull_objects(parts, lambda part: pull_object(run, part))
        confirm(run, identifier)
        whole = inflate_object_from_contents(identifier, contents)
        assert isinstance(whole, Message)
        whole.metadata.__dict__["_message_id"] = identifier
        return whole

    def answer(self, message: Message, *, upload: bool = True) -> None:
        """Announce the reply of this node's enclave, and upload its parts unless told otherwise."""
        _, _, send, _, _, _, push_object, _ = self._connection
        reply = Message(carry(message.content, {ENCLAVE_DIRECTORY: str(self.enclaves)}), reply_to=message)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            wanted, session = send(reply, get_object_tree(reply), 1.0)
            if upload:
                for part, content in get_all_nested_objects(reply).items():
                    if part in wanted:
                        push_object(reply.metadata.run_id, session, part, content.deflate())


@contextmanager
def hand_played_node(federation: SmallFederation, folder: Path, name: str) -> Iterator[HandPlayedNode]:
    """Enrol ``name`` with a key in ``folder``, and connect as its SuperNode would."""
    path, public = supernode_key(folder)
    key = load_ssh_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    node = federation.coordinator.enrol(name, public).node_id
    ca = federation.coordinator.config.ca.read_bytes()
    with (
        http_request_response(federation.coordinator.address, False, ca, (key, key.public_key())) as connection,
        tempfile.TemporaryDirectory(prefix="vht-") as enclaves,  # short enough for the name of a socket
    ):
        yield HandPlayedNode(node, Path(enclaves), connection)
