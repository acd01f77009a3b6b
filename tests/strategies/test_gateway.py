"""Hospitals reach the fleet API and nothing else."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, PushObjectResponse
from flwr.proto.node_pb2 import Node

import strategies.fleet_uploads as fleet_uploads
import strategies.gateway as gateway
from strategies.file_notification import FileNotification
from strategies.gateway import FLEET_PATHS, make_gateway
from vht_federate.testing.asgi import AppClient

MESSAGE = PullMessagesResponse(messages_list=[Message(metadata=Metadata(message_id="m"))]).SerializeToString()
PULL = "/v1/fleet/pull-messages"
UPLOADED = "/v1/fleet/push-object"
REPLY = "/v1/fleet/push-messages"
HOSPITAL, OTHER, COORDINATOR = 7, 8, 1


def pushed(*, times: int = 1, **about: object) -> bytes:
    """A push of messages by ``HOSPITAL``, of one reply of its own unless ``about`` says otherwise."""
    metadata = Metadata(
        **{"src_node_id": HOSPITAL, "dst_node_id": COORDINATOR, "reply_to_message_id": "question"} | about
    )
    return PushMessagesRequest(
        node=Node(node_id=HOSPITAL), messages_list=[Message(metadata=metadata)] * times
    ).SerializeToString()


class Upstream:
    """A SuperLink that records what reaches it, and has a message from the ``after``-th question on.

    ``failures``: what it answers first to anything else, status and body.
    """

    def __init__(self, after: int = 1, failures: Sequence[tuple[int, bytes]] = ()) -> None:
        self.asked: list[str] = []
        left = list(failures)
        self.headers: dict[str, str] = {}
        self.app = FastAPI()

        @self.app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"])
        async def record(request: Request) -> Response:
            self.asked.append(request.url.path)
            self.headers = dict(request.headers)
            body = await request.body()
            if left:
                status, body = left.pop(0)
                return Response(body, status_code=status, media_type="application/x-protobuf")
            if request.url.path == PULL:
                body = MESSAGE if len(self.asked) >= after else b""
            return Response(body, media_type="application/x-protobuf")


PAUSES_S = (0.01, 0.01)
STORED, NOT_STORED = (PushObjectResponse(stored=stored).SerializeToString() for stored in (True, False))


def build(upstream: Upstream, folder: Path, *, hold_s: float = 300.0, recheck_s: float = 0.05) -> FastAPI:
    superlink = httpx.AsyncClient(transport=httpx.ASGITransport(upstream.app), base_url="http://superlink")
    notifications = FileNotification(folder / "messages", 0.01), FileNotification(folder / "replies", 0.01)
    identity = {"name": "coordinator"}
    return make_gateway(superlink, *notifications, identity, hold_s=hold_s, recheck_s=recheck_s, pauses_s=PAUSES_S)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-nodes",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/runtime/pull-messages",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/v1/fleet//pull-messages",
        "//v1/control/start-run",
        "/v1/Fleet/pull-messages",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "DELETE"])
def test_every_other_path_is_not_found(path: str, method: str, tmp_path: Path) -> None:
    upstream = Upstream()
    answer = AppClient(build(upstream, tmp_path)).request(method, path, content=b"x")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "VHT-INPUT-NOT-FOUND"
    assert upstream.asked == []


@pytest.mark.parametrize("path", sorted(FLEET_PATHS))
def test_a_fleet_path_is_forwarded_with_its_body_and_signature(path: str, tmp_path: Path) -> None:
    upstream = Upstream()
    headers = {"flwr-signature": "abc", "x-forwarded-for": "10.0.0.1"}
    body = pushed() if path == REPLY else b"body"
    answer = AppClient(build(upstream, tmp_path)).post(path, content=body, headers=headers)
    assert answer.status_code == 200
    assert answer.content == (MESSAGE if path == PULL else body)
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert upstream.asked == [path]
    assert upstream.headers["flwr-signature"] == "abc"
    assert "x-forwarded-for" not in upstream.headers


@pytest.mark.parametrize("name", ["flwr-public-key", "flwr-signature", "Flwr-Timestamp"])
def test_a_header_of_flowers_that_stands_twice_is_refused(name: str, tmp_path: Path) -> None:
    """The SuperLink would judge one key, and the gateway take the other for an accepted one."""
    upstream = Upstream()
    headers = [(name, "made-up"), (name.lower(), "enrolled")]
    answer = AppClient(build(upstream, tmp_path)).post(PULL, content=b"", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "VHT-INPUT-FRAMING")
    assert upstream.asked == []


def test_a_fleet_path_answers_only_to_post(tmp_path: Path) -> None:
    upstream = Upstream()
    assert AppClient(build(upstream, tmp_path)).get(PULL).status_code == 404
    assert upstream.asked == []


def test_flower_still_has_the_paths_that_are_forwarded() -> None:
    from flwr.superlink.routers.fleet.router import router

    known = {getattr(route, "path", "") for route in router.routes}
    assert known >= FLEET_PATHS
    assert known - FLEET_PATHS == {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}


def test_an_empty_answer_is_held_until_there_is_a_message(tmp_path: Path) -> None:
    upstream = Upstream(after=3)
    answer = AppClient(build(upstream, tmp_path)).post(PULL)
    assert answer.content == MESSAGE
    assert len(upstream.asked) == 3


def test_an_empty_answer_goes_out_when_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = Upstream(after=10_000)
    app = AppClient(build(upstream, tmp_path, hold_s=3.5))
    monkeypatch.setattr(gateway, "time", SimpleNamespace(monotonic=lambda: float(len(upstream.asked))))
    answer = app.post(PULL)
    assert (answer.status_code, answer.content) == (200, b"")
    assert upstream.asked == [PULL] * 4


@pytest.mark.parametrize(
    ("path", "failure"),
    [
        (UPLOADED, (200, NOT_STORED)),
        (UPLOADED, (500, b"")),
        (REPLY, (500, b"")),
        (PULL, (500, b"")),
    ],
)
def test_what_the_superlink_fails_to_do_for_a_moment_is_tried_again(
    path: str, failure: tuple[int, bytes], tmp_path: Path
) -> None:
    upstream = Upstream(failures=[failure] * len(PAUSES_S))
    body = pushed() if path == REPLY else STORED
    answer = AppClient(build(upstream, tmp_path)).post(path, content=body)
    assert (answer.status_code, answer.content) == (200, MESSAGE if path == PULL else body)
    assert upstream.asked == [path] * (1 + len(PAUSES_S))


@pytest.mark.parametrize("failure", [(200, NOT_STORED), (500, b"broken")])
def test_what_the_superlink_goes_on_failing_is_passed_on(failure: tuple[int, bytes], tmp_path: Path) -> None:
    upstream = Upstream(failures=[failure] * 10)
    answer = AppClient(build(upstream, tmp_path)).post(UPLOADED, content=b"part")
    assert (answer.status_code, answer.content) == failure
    assert len(upstream.asked) == 1 + len(PAUSES_S)


@pytest.mark.parametrize("refusal", [(401, b"signature"), (403, b"run"), (400, b"body")])
def test_a_refusal_of_the_superlink_is_passed_on_at_once(refusal: tuple[int, bytes], tmp_path: Path) -> None:
    upstream = Upstream(failures=[refusal] * 10)
    answer = AppClient(build(upstream, tmp_path)).post(UPLOADED, content=b"part")
    assert (answer.status_code, answer.content) == refusal
    assert upstream.asked == [UPLOADED]


@pytest.mark.parametrize(
    "body",
    [
        pushed(
            src_node_id=COORDINATOR, dst_node_id=OTHER, reply_to_message_id=""
        ),  # an instruction to another hospital
        pushed(src_node_id=COORDINATOR, reply_to_message_id=""),  # Flower would hand it to the run, unasked
        pushed(src_node_id=OTHER),
        pushed(dst_node_id=OTHER),
        pushed(reply_to_message_id=""),
        pushed(times=0),
        pushed(times=2),
        b"no message of any kind",
    ],
)
def test_a_hospital_sends_nothing_but_its_own_replies(body: bytes, tmp_path: Path) -> None:
    upstream = Upstream()
    answer = AppClient(build(upstream, tmp_path)).post(REPLY, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "VHT-INPUT-REPLY")
    assert upstream.asked == []


def test_the_bell_rings_while_a_part_is_arriving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app, notification = build(Upstream(), tmp_path), FileNotification(tmp_path / "replies")
    monkeypatch.setattr(fleet_uploads, "ARRIVING_EVERY_S", 0.0)
    notified: list[int] = []

    async def slowly() -> AsyncIterator[dict[str, Any]]:
        for number in range(4):
            notified.append(notification.last())
            await asyncio.sleep(0.02)
            yield {"type": "http.request", "body": b"chunk", "more_body": number < 3}

    async def upload() -> None:
        chunks, sent = slowly(), []

        async def receive() -> dict[str, Any]:
            return await anext(chunks, {"type": "http.disconnect"})

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": UPLOADED, "headers": [], "query_string": b""}
        await app(scope, receive, send)
        assert sent[0]["status"] == 200

    asyncio.run(upload())
    assert notified[1] < notified[2] < notified[3] < notification.last()


def test_a_notification_wakes_whoever_waits(tmp_path: Path) -> None:
    notification = FileNotification(tmp_path / "notification", 0.01)

    async def ring_later() -> None:
        waiting = asyncio.create_task(notification.wait(notification.last(), math.inf))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        notification.notify()
        await asyncio.wait_for(waiting, 300)

    asyncio.run(ring_later())
