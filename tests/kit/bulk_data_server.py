"""A small FHIR R4 server with Bulk Data export and search, over loopback: real HTTP, and faults on order.

Written from the specifications, not from the client: it refuses what they refuse (a kick-off of another dialect, a
long-lived or repeated assertion, a token past its end).
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jwt
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from vht_federate.tcp_ports import free_port

ACCEPTED = "application/fhir+json"
SLICE = 4096


@dataclass(frozen=True)
class Failure:
    """What the next request for a path that begins with ``path`` is answered."""

    path: str
    status: int
    body: bytes = b""
    retry_after: str | None = None


@dataclass
class BulkServer:
    """What it holds, how it behaves, what it was asked. ``files`` split each type into several."""

    resources: dict[str, list[dict[str, Any]]]
    dialect: str = "get"
    polls: int = 2  # answers of 202 before a job is done
    retry_after: str | None = "1"
    ranges: bool = True
    files: int = 1
    per_page: int = 20
    public_jwk: dict[str, Any] | None = None  # None: open to all
    token_life_s: float = 300.0
    gone: bool = False  # files of earlier jobs are no longer there, until the next job
    forgets: int = 0  # polls that find no job
    fails: int = 0  # polls that find a failed job
    busy: int = 0  # requests answered by 503 first
    failures: list[Failure] = field(default_factory=list)  # in turn
    ignores_since: bool = False
    cuts: dict[str, list[int]] = field(default_factory=dict)  # type: bytes after which a download breaks, in turn
    stall: tuple[str, int] | None = None  # type, bytes: wait there until ``resume``
    manifest_changes: dict[str, Any] = field(default_factory=dict)
    deleted: list[Any] = field(default_factory=list)  # addresses, or whole entries
    history: dict[str, list[Any]] = field(default_factory=dict)  # type: entries
    endless_status: int = 200
    endless: str | None = None  # path whose answer has no end: in pieces of ``piece`` bytes, each after ``drip_s``
    piece: int = 65536
    drip_s: float = 0.0
    encoding: str | None = None  # that answers claim, and do not have
    literal: dict[str, bytes] = field(default_factory=dict)  # type: what a search for it answers
    expire_page: str | None = None  # type whose second page is gone once
    padding: bytes = b""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)
    jtis: set[str] = field(default_factory=set)
    served: dict[str, int] = field(default_factory=dict)  # bytes of each file that left
    stalled: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)
    port: int = field(default_factory=free_port)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base(self) -> str:
        return f"{self.origin}/fhir"

    def downloads(self, kind: str) -> list[dict[str, str]]:
        return [headers for method, path, headers in self.asked if method == "GET" and f"/files/{kind}" in path]

    def chosen(self, kind: str, since: str | None) -> list[dict[str, Any]]:
        resources = self.resources.get(kind, [])
        if since is None or self.ignores_since:
            return resources
        start = datetime.fromisoformat(since)
        return [resource for resource in resources if datetime.fromisoformat(resource["meta"]["lastUpdated"]) >= start]

    def content(self, kind: str, number: int, since: str | None) -> bytes:
        return b"".join(
            json.dumps(resource).encode() + b"\n" for resource in self.chosen(kind, since)[number :: self.files]
        )

    @contextmanager
    def running(self) -> Iterator["BulkServer"]:
        config = uvicorn.Config(
            application(self), host="127.0.0.1", port=self.port, log_level="critical", ws="none", loop="asyncio",
            headers=[("Connection", "close")],
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield self
        finally:
            self.resume.set()
            server.should_exit = True
            thread.join(10)


def application(server: BulkServer) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def door(request: Request, call_next: Any) -> Any:
        path = request.url.path
        server.asked.append((request.method, str(request.url), dict(request.headers)))
        if server.busy:
            server.busy -= 1
            return Response(status_code=503, headers={"Retry-After": "3"})
        if path == server.endless:
            return StreamingResponse(_without_end(server), server.endless_status, media_type="application/json")
        for at, failure in enumerate(server.failures):
            if path.startswith(failure.path):
                del server.failures[at]
                headers = {"Retry-After": failure.retry_after} if failure.retry_after else {}
                return Response(failure.body, failure.status, headers, media_type=ACCEPTED)
        if server.public_jwk and path.startswith(("/fhir/", "/files/", "/jobs/")) and ".well-known" not in path:
            token = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if server.tokens.get(token, 0.0) < time.monotonic():
                return Response(status_code=401)
        answer = await call_next(request)
        if server.encoding:
            answer.headers["Content-Encoding"] = server.encoding
        return answer

    _add_authorization(app, server)
    _add_export(app, server)
    _add_search(app, server)
    return app


def _without_end(server: BulkServer) -> Iterator[bytes]:
    while not server.resume.wait(server.drip_s):
        server.served["endless"] = server.served.get("endless", 0) + server.piece
        yield b" " * server.piece


def _add_authorization(app: FastAPI, server: BulkServer) -> None:
    @app.get("/fhir/.well-known/smart-configuration")
    def configuration() -> dict[str, Any]:
        return {"token_endpoint": f"{server.origin}/token"}

    @app.post("/token")
    async def token(request: Request) -> Response:
        form = dict(await request.form())
        try:
            assertion = str(form["client_assertion"])
            assert form["grant_type"] == "client_credentials"
            assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
            assert server.public_jwk is not None
            key = jwt.PyJWK(server.public_jwk)
            claims = jwt.decode(assertion, key, algorithms=["RS384", "ES384"], audience=f"{server.origin}/token",
                                options={"require": ["exp", "jti", "iss", "sub", "aud"]})  # fmt: skip
            assert claims["iss"] == claims["sub"] == "client-1"
            assert claims["exp"] - time.time() <= 300
            assert claims["jti"] not in server.jtis
            server.jtis.add(claims["jti"])
        except (jwt.PyJWTError, AssertionError, KeyError):
            return JSONResponse({"error": "invalid_client"}, status_code=400)
        access_token = f"token-{len(server.tokens)}"
        server.tokens[access_token] = time.monotonic() + server.token_life_s
        return JSONResponse({"access_token": access_token, "token_type": "bearer", "expires_in": 300})


def _add_export(app: FastAPI, server: BulkServer) -> None:
    def begin(types: list[str], since: str | None, request: Request) -> Response:
        if request.headers.get("Prefer") != "respond-async":
            return Response(status_code=400)
        job, server.gone = f"job-{len(server.jobs)}", False
        server.jobs[job] = {"types": types, "since": since, "polls": 0, "at": datetime.now(UTC)}
        return Response(status_code=202, headers={"Content-Location": f"{server.origin}/jobs/{job}"})

    @app.get("/fhir/$export")
    @app.get("/fhir/Patient/$export")
    def get(request: Request) -> Response:
        if server.dialect != "get":
            return Response(status_code=405)
        query = request.query_params
        return begin(query["_type"].split(","), query.get("_since"), request)

    @app.post("/fhir/$export")
    async def post(request: Request) -> Response:
        body = await request.json()
        if server.dialect != "post" or request.headers["Content-Type"] != ACCEPTED:
            return Response(status_code=400)
        assert body["resourceType"] == "Parameters"
        types = [parameter["valueString"] for parameter in body["parameter"] if parameter["name"] == "_type"]
        since = [parameter["valueInstant"] for parameter in body["parameter"] if parameter["name"] == "_since"]
        return begin(types, since[0] if since else None, request)

    @app.get("/jobs/{job}")
    def poll(job: str) -> Response:
        if server.forgets or job not in server.jobs:
            server.forgets = max(0, server.forgets - 1)
            return Response(status_code=404)
        if server.fails:
            server.fails -= 1
            return JSONResponse({"resourceType": "OperationOutcome"}, status_code=500)
        export = server.jobs[job]
        export["polls"] += 1
        if export["polls"] <= server.polls:
            headers = {"Retry-After": server.retry_after} if server.retry_after else {}
            return Response(status_code=202, headers=headers | {"X-Progress": "working"})
        return JSONResponse(_manifest(server, job, export))

    @app.delete("/jobs/{job}")
    def forget(job: str) -> Response:
        return Response(status_code=202 if server.jobs.pop(job, None) else 404)

    @app.get("/files/{kind}")
    def file(kind: str, request: Request, number: int = 0, since: str | None = None) -> Response:
        if server.gone:
            return Response(status_code=404)
        if kind == "deleted":
            entries = [
                {"request": {"method": "DELETE", "url": item}} if isinstance(item, str) else item
                for item in server.deleted
            ]
            bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
            return Response(json.dumps(bundle) + "\n")
        content = server.content(kind, number, since) + server.padding
        return _sent(server, kind, number, content, request)


def _manifest(server: BulkServer, job: str, export: dict[str, Any]) -> dict[str, Any]:
    since = f"&since={export['since'].replace('+', '%2B')}" if export["since"] else ""
    output = [
        {"type": kind, "url": f"{server.origin}/files/{kind}?number={number}{since}",
         "count": len(server.chosen(kind, export["since"])[number :: server.files])}
        for kind in export["types"] for number in range(server.files) if server.chosen(kind, export["since"])
    ]  # fmt: skip
    gone = [{"type": "Bundle", "url": f"{server.origin}/files/deleted?job={job}"}] if server.deleted else []
    return {
        "transactionTime": export["at"].isoformat(),
        "requiresAccessToken": True,
        "output": output,
        "deleted": gone,
        "error" if server.dialect == "get" else "outcome": [],
        **server.manifest_changes,
    }


def _sent(server: BulkServer, kind: str, number: int, content: bytes, request: Request) -> Response:
    start, status, headers = 0, 200, {"Content-Type": "application/fhir+ndjson"}
    if server.ranges:
        headers["ETag"] = f'"{kind}-{number}-{len(content)}"'
        range_header = request.headers.get("Range")
        if range_header and request.headers.get("If-Range") == headers["ETag"]:
            start, status = int(range_header.removeprefix("bytes=").removesuffix("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    headers["Content-Length"] = str(len(content) - start)
    cut = server.cuts[kind].pop(0) if server.cuts.get(kind) else None
    key = f"{kind}-{number}"

    def body() -> Iterator[bytes]:
        for at in range(start, len(content), SLICE):
            if cut is not None and at - start >= cut:
                raise ConnectionError("cut on order")
            if server.stall and server.stall[0] == kind and at >= server.stall[1]:
                server.stalled.set()
                server.resume.wait(300)
            part = content[at : at + SLICE]
            server.served[key] = server.served.get(key, 0) + len(part)
            yield part

    return StreamingResponse(body(), status_code=status, headers=headers)


def _add_search(app: FastAPI, server: BulkServer) -> None:
    @app.get("/fhir/{kind}/_history")
    def history(kind: str) -> Response:
        bundle = {"resourceType": "Bundle", "type": "history", "entry": server.history.get(kind, [])}
        return JSONResponse(bundle, media_type=ACCEPTED)

    @app.get("/fhir/{kind}")
    def search(kind: str, request: Request, page: int = 0, _count: int = 20) -> Response:
        if kind in server.literal:
            return Response(server.literal[kind], media_type=ACCEPTED)
        changed = request.query_params.get("_lastUpdated")
        if page and server.expire_page == kind:
            server.expire_page = None
            return Response(status_code=410)
        matches = server.chosen(kind, changed.removeprefix("ge") if changed else None)
        size = min(int(request.query_params["_count"]), server.per_page)
        shown = matches[page * size : (page + 1) * size]
        entries = [{"resource": resource, "search": {"mode": "match"}} for resource in shown]
        entries.append({"resource": {"resourceType": "OperationOutcome"}, "search": {"mode": "outcome"}})
        links = [{"relation": "self", "url": str(request.url)}]
        if (page + 1) * size < len(matches):
            more = request.url.include_query_params(page=page + 1)
            links.append({"relation": "next", "url": f"{server.origin}{more.path}?{more.query}"})
        bundle = {"resourceType": "Bundle", "type": "searchset", "link": links, "entry": entries}
        return JSONResponse(bundle, media_type=ACCEPTED)
