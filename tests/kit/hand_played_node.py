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
from flwr.app import Message, MessageType, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.fleet_http_connection import http_request_response
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from kit.small_federation import SmallFederation, supernode_key
from strategies.courier import ENCLAVE_DIRECTORY, carry
from strategies.superlink_socket import HOST, connected


@dataclass
class HandPlayedNode:
    """One enrolled node; ``enclaves`` is where the enclaves listen that answer for it."""

    node: int
    enclaves: Path
    _key: ec.EllipticCurvePrivateKey
    _gateway: str
    _ca: bytes
    _connection: Any

    def next_announced(self) -> tuple[Message, ObjectTree]:
        """The next message to this node, without its content, and the tree of its parts."""
        _, receive, *_ = self._connection
        while (announced := receive()) is None:  # the coordinator holds the question for some seconds
            time.sleep(0.5)
        message, tree = announced
        return message, tree

    def receive(self) -> Message:
        """The next message to this node, whole."""
        _, _, _, _, _, pull_object, _, confirm = self._connection
        message, tree = self.next_announced()
        run, identifier = message.metadata.run_id, message.metadata.message_id
        parts = [subtree.object_id for subtree in iterate_object_tree(tree)]
        contents = pull_objects(parts, lambda part: pull_object(run, part))
        confirm(run, identifier)
        whole = inflate_object_from_contents(identifier, contents)
        assert isinstance(whole, Message)
        whole.metadata.__dict__["_message_id"] = identifier
        return whole

    def answer(self, message: Message, *, upload: bool = True) -> None:
        """Announce the reply of this node's enclave, and upload its parts unless told otherwise."""
        _, _, send, _, _, _, push_object, _ = self._connection
        config, identifier = {ENCLAVE_DIRECTORY: str(self.enclaves)}, message.metadata.message_id
        reply = Message(carry(message.content, config, answering=identifier), reply_to=message)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            wanted, session = send(reply, get_object_tree(reply), 1.0)
            if upload:
                for part, content in get_all_nested_objects(reply).items():
                    if part in wanted:
                        push_object(reply.metadata.run_id, session, part, content.deflate())

    def send_as_coordinator(self, to: int, run: int, *, socket: Path | None = None) -> None:
        """Push a message of ``run`` to the node ``to`` as if the coordinator had sent it, signed as this node.

        To the gateway, or past it to the SuperLink's ``socket``. Raises httpx.HTTPStatusError where that is refused.
        """
        metadata = Metadata(
            run_id=run, message_id="", src_node_id=SUPERLINK_NODE_ID, dst_node_id=to, reply_to_message_id="",
            group_id="train-1", created_at=time.time(), ttl=60.0, message_type=MessageType.QUERY,
        )  # fmt: skip
        message = make_message(metadata=metadata, content=RecordDict())
        interceptors = [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(self._key, self._key.public_key()),
        ]
        client = FleetHttpClient.from_server_address(self._gateway, False, self._ca, interceptors=interceptors)
        if socket is not None:
            client = connected(FleetHttpClient(f"http://{HOST}", interceptors=interceptors), socket)
        with client, no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            client.PushMessages(
                PushMessagesRequest(
                    node=Node(node_id=self.node),
                    messages_list=[message_to_proto(remove_content_from_message(message))],
                    message_object_trees=[get_object_tree(message)],
                )
            )


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
        yield HandPlayedNode(node, Path(enclaves), key, federation.coordinator.address, ca, connection)
