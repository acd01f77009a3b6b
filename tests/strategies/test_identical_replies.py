"""Two hospitals may answer with the same bytes: no part of one's reply is taken for the other's, and nobody is lost."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import context_to_proto, message_to_proto, run_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.runtime_pb2 import (
    PullAppMessagesResponse,
    PullTaskInputResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
    PushTaskOutputRequest,
    PushTaskOutputResponse,
    SendTaskHeartbeatResponse,
)
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.run import Run
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message
from kit.hostile_table import Answered
from kit.scripted_superlink import RUN, reply_to

from strategies.courier import carry
from strategies.message_content import Answer, pack_calls, pack_replies, replies_of
from strategies.runtime_tasks import RuntimeApi
from strategies.warm_executor import Executor
from vht_federate.errors import UnavailableError
from vht_federate.framing import Call, Reply

SAME = Answer(Reply({"patients": 12}, b"the same sums"), Reply({"patients": 12}, b"the same sums").sha256())
REFUSED = Answer(None, error=UnavailableError("no enclave is open for this visit", code="VHT-UNAVAILABLE-ENCLAVE"))


def parts(content: RecordDict) -> set[str]:
    """Flower's names of a message's content and all that it consists of."""
    with no_object_id_recompute():
        return set(get_all_nested_objects(content))


def wanted_of_the_second(first: RecordDict, second: RecordDict) -> set[str]:
    """Parts of the second reply that Flower's own store asks its sender for, after the first has come whole."""
    store = InMemoryObjectStore()
    with no_object_id_recompute():
        reply, other = reply_to("message-1", first), reply_to("message-2", second)
        store.preregister(RUN, get_object_tree(reply))
        for part, content in get_all_nested_objects(reply).items():
            store.put(part, content.deflate())
        return set(store.preregister(RUN, get_object_tree(other)))


@pytest.mark.hostile("same-replies")
@pytest.mark.parametrize("answer", [SAME, REFUSED], ids=["answer", "refusal"])
def test_each_hospital_is_asked_for_its_own_reply_whole(answer: Answer, answered: Answered) -> None:
    first, second = (pack_replies([answer], answering=f"message-{number}") for number in (1, 2))
    assert not parts(first) & parts(second)
    assert parts(second) <= wanted_of_the_second(first, second)
    (read,) = replies_of(second, 1)
    assert read.reply == answer.reply
    answered("each is asked for all of its own")


@pytest.mark.hostile("same-replies", control=True)
def test_without_its_message_in_it_a_reply_shares_its_parts_with_anothers() -> None:
    """The control: then Flower's store wants nothing of the second but the message itself."""
    first, second = (pack_replies([SAME], answering="") for _ in range(2))
    assert parts(first) == parts(second)
    assert not parts(second) & wanted_of_the_second(first, second)


def test_replies_to_messages_that_hold_no_calls_differ_as_well() -> None:
    first, second = (carry(RecordDict(), {}, answering=f"message-{number}") for number in (1, 2))
    assert not parts(first) & parts(second)


def test_the_same_calls_sent_again_share_no_part_with_the_first() -> None:
    first, second = (pack_calls([Call("v-1", "train", 1, {}, b"weights")], deadline_s=1.0) for _ in range(2))
    assert not parts(first) & parts(second)


class ScriptedSuperNode:
    """A SuperNode's Runtime API with one message. ``stores``: does it still take a part of this reply?"""

    def __init__(self, stores: Callable[[], bool]) -> None:
        self.stores, self.taken, self.ended = stores, set[str](), list[str]()
        self.message = reply_to("", pack_calls([Call("v-1", "train", 1)], deadline_s=1.0))
        with no_object_id_recompute():
            self.message.metadata.__dict__["_message_id"] = self.message.object_id
            self.tree = get_object_tree(self.message)
            self.parts = {part: held.deflate() for part, held in get_all_nested_objects(self.message).items()}
        self.announced: set[str] = set()

    def answer(self, path: str, body: bytes) -> bytes:
        match path.rpartition("/")[2]:
            case "pull-task-input":
                context = Context(RUN, 7, {}, RecordDict(), {})
                run = run_to_proto(Run.create_empty(RUN))
                answer = PullTaskInputResponse(context=context_to_proto(context), run=run, task_id=1)
            case "pull-messages":
                message = message_to_proto(self.message)
                answer = PullAppMessagesResponse(messages_list=[message], message_object_trees=[self.tree])
            case "pull-object":
                content = self.parts[PullObjectRequest.FromString(body).object_id]
                answer = PullObjectResponse(object_found=True, object_available=True, object_content=content)
            case "confirm-message-received":
                answer = ConfirmMessageReceivedResponse()
            case "send-task-heartbeat":
                answer = SendTaskHeartbeatResponse(success=True)
            case "push-messages":
                (tree,) = PushAppMessagesRequest.FromString(body).message_object_trees
                self.announced = {part.object_id for part in iterate_object_tree(tree)}
                answer = PushAppMessagesResponse(objects_to_push=self.announced, session_id="session")
            case "push-object":
                stored = self.stores()
                self.taken |= {PushObjectRequest.FromString(body).object_id} if stored else set()
                answer = PushObjectResponse(stored=stored)
            case "push-task-output":
                self.ended.append(PushTaskOutputRequest.FromString(body).sub_status)
                answer = PushTaskOutputResponse()
        return answer.SerializeToString()


@contextmanager
def served(node: ScriptedSuperNode) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = node.answer(self.path, self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-type", "application/protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.hostile("lost-executor")
def test_a_supernode_that_is_done_with_a_reply_too_early_costs_no_other_reply(answered: Answered) -> None:
    """It stores no more parts of that reply: Flower's client raises ObjectPushError, and the executor goes on."""
    done = True
    node = ScriptedSuperNode(lambda: not done)
    with served(node) as address:
        executor = Executor(RuntimeApi(address), b"secret")
        executor.run_task("first")
        assert (node.taken, node.ended) == (set(), ["failed"])
        done = False
        executor.run_task("second")
    assert node.taken == node.announced
    assert node.ended == ["failed", "completed"]
    answered("that message failed, the next arrived")


@pytest.mark.hostile("lost-executor", control=True)
def test_control_what_flowers_client_raises_there_ends_whoever_lets_it_pass() -> None:
    node = ScriptedSuperNode(lambda: False)
    with served(node) as address, RuntimeApi(address).client(RuntimeTokenHttpInterceptor("t")) as runtime:
        message, context, _, _ = pull_task_input(runtime)
        with pytest.raises(ObjectPushError):
            push_message(runtime, Message(pack_replies([SAME], answering="m"), reply_to=message), context)
