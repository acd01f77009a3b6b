"""The coordinator's front door: hospitals reach the fleet API of the SuperLink, and nothing else.

Flower serves its fleet, control and runtime APIs at one address, and the control API asks nobody who they are. So the
SuperLink listens on a Unix socket of the coordinator's user, and this TLS proxy forwards an exact list of fleet paths,
of messages only replies in the name of whoever sends them: Flower would pass a hospital's message on as one of the
coordinator's. It also holds a SuperNode's question "any message for me?" until there is one: Flower's SuperNode sleeps
three seconds after each empty answer. And it asks again where the SuperLink fails for a moment (its database is
locked): a SuperNode whose upload of one part fails gives the whole reply up. For that it holds each body, within the
bounds of ``fleet_uploads``.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from strategies.file_notification import FileNotification
from strategies.fleet_uploads import FleetUploads, require_one_signature
from strategies.superlink_socket import HOST, socket_address
from vht_federate.client import IDLE_S
from vht_federate.errors import InputError, UnavailableError
from vht_federate.serving import answer_typed_errors

__all__ = ["FLEET_PATHS", "make_gateway", "superlink_client"]

PULL = "/v1/fleet/pull-messages"
REPLY = "/v1/fleet/push-messages"
UPLOADED = "/v1/fleet/push-object"
# Of Flower's twelve fleet paths all but register-node and unregister-node: the coordinator enrols, nobody else.
FLEET_PATHS = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        *("activate-node", "deactivate-node", "send-node-heartbeat", "get-run", "get-fab"),
        *("pull-messages", "push-messages", "pull-object", "push-object", "confirm-message-received"),
    )
)
PAUSES_S = (0.3, 1.0)  # before what the SuperLink failed to do is tried again
RETRIES_END_S = 10.0  # a SuperNode waits 30 s for an answer, and sends the same once more after that
SUPERLINK_NODE = 1  # Flower's id of the coordinator's side
_NOT_FORWARDED = frozenset(  # belong to one connection (RFC 9110 section 7.6.1), or are written anew
    {"connection", "content-encoding", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "accept-encoding", "server", "date", "proxy-authorization", "forwarded", "x-forwarded-for"}
)


def _has_message(body: bytes) -> bool:
    from flwr.proto.fleet_pb2 import PullMessagesResponse
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return len(PullMessagesResponse.FromString(body).messages_list) > 0
    except DecodeError:
        return True  # not ours to judge: pass it on


def _require_own_reply(body: bytes) -> None:
    """Raises InputError VHT-INPUT-REPLY for anything but one reply, by the node that sends it, to the coordinator.

    Which node that is, the SuperLink knows by the request's signature.
    """
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from google.protobuf.message import DecodeError

    try:
        request = PushMessagesRequest.FromString(body)
        (message,) = request.messages_list
        about = message.metadata
    except (DecodeError, ValueError) as error:
        raise InputError("a hospital sends one reply at a time", code="VHT-INPUT-REPLY") from error
    own = about.src_node_id == request.node.node_id and about.dst_node_id == SUPERLINK_NODE
    if not own or not about.reply_to_message_id:
        raise InputError("a hospital sends replies, to the coordinator and as itself", code="VHT-INPUT-REPLY")


def _failed(path: str, answer: httpx.Response) -> bool:
    """True where the SuperLink could not do what it was asked, which may pass."""
    from flwr.proto.message_pb2 import PushObjectResponse
    from google.protobuf.message import DecodeError

    if path != UPLOADED or answer.status_code != 200:
        return answer.status_code == 500
    try:
        return not PushObjectResponse.FromString(answer.content).stored
    except DecodeError:
        return False  # not ours to judge: pass it on


@dataclass(frozen=True)
class _Upstream:
    http: httpx.AsyncClient
    message_notification: FileNotification
    replies: FileNotification
    hold_s: float
    recheck_s: float
    pauses_s: Sequence[float]

    async def ask(self, request: Request, headers: Mapping[str, str], body: bytes) -> httpx.Response:
        path, started = request.url.path, time.monotonic()
        answer = await self._ask_once(path, headers, body)
        for pause_s in self.pauses_s:
            if not _failed(path, answer) or time.monotonic() - started > RETRIES_END_S:
                break
            await asyncio.sleep(pause_s)
            if await request.is_disconnected():
                break
            answer = await self._ask_once(path, headers, body)
        if path == UPLOADED:
            self.replies.notify()
        return answer

    async def _ask_once(self, path: str, headers: Mapping[str, str], body: bytes) -> httpx.Response:
        try:
            return await self.http.post(path, content=body, headers=dict(headers))
        except httpx.HTTPError as error:
            raise UnavailableError("the SuperLink does not answer", code="VHT-UNAVAILABLE-SUPERLINK") from error

    async def pull(self, request: Request, headers: Mapping[str, str], body: bytes) -> httpx.Response:
        """Ask again while there is no message and the asker is still there, for at most ``hold_s``."""
        end = time.monotonic() + self.hold_s
        while True:
            last_notified = self.message_notification.last()
            answer = await self.ask(request, headers, body)
            if answer.status_code != 200 or _has_message(answer.content) or time.monotonic() >= end:
                return answer
            await self.message_notification.wait(last_notified, min(self.recheck_s, max(0.0, end - time.monotonic())))
            if await request.is_disconnected():  # whoever asked is gone: leave the message for the next asker
                return answer


def _nothing() -> None:
    pass


def superlink_client(socket: Path) -> httpx.AsyncClient:
    """The gateway's line to the SuperLink behind ``socket``."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=IDLE_S)
    transport = httpx.AsyncHTTPTransport(uds=socket_address(socket), limits=limits)
    return httpx.AsyncClient(base_url=f"http://{HOST}", transport=transport, timeout=60.0, trust_env=False)


def make_gateway(
    superlink: httpx.AsyncClient,
    message_notification: FileNotification,
    replies: FileNotification,
    identity: Mapping[str, object],
    *,
    hold_s: float = 20.0,
    recheck_s: float = 2.0,
    pauses_s: Sequence[float] = PAUSES_S,
) -> FastAPI:
    """The proxy before the SuperLink that ``superlink`` asks; ``hold_s`` stays under a SuperNode's 30 s.

    A ServerApp touches ``message_notification`` when it pushed messages; the gateway touches ``replies`` when a part of
    a reply has arrived, and every second while one is arriving.
    """
    uploads = FleetUploads()
    upstream = _Upstream(superlink, message_notification, replies, hold_s, recheck_s, pauses_s)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with superlink:
            yield

    app = answer_typed_errors(FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "service": "coordinator"}

    @app.get("/identity")
    async def who() -> JSONResponse:
        return JSONResponse(dict(identity))

    @app.api_route("/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    async def forward(request: Request) -> Response:
        path = request.url.path
        if request.method != "POST" or path not in FLEET_PATHS:
            raise HTTPException(404, "this address serves the fleet API only")
        require_one_signature(request.headers.raw)
        headers = {key: value for key, value in request.headers.items() if key not in _NOT_FORWARDED}
        async with uploads.body(request, replies.notify if path == UPLOADED else _nothing) as body:
            if path == REPLY:
                _require_own_reply(body)
            answer = await (upstream.pull if path == PULL else upstream.ask)(request, headers, body)
        if answer.status_code == 200:
            uploads.accepted(request.headers)
        answer_headers = {key: value for key, value in answer.headers.items() if key not in _NOT_FORWARDED}
        return Response(answer.content, status_code=answer.status_code, headers=answer_headers)

    return app
