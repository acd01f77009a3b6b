"""Two listeners of one process: whatever one is flooded with, the other answers; one body length, counted as read."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
from fastapi import FastAPI, Request
from kit.hospital import await_that
from kit.hostile_table import Answered

from vht_federate import serving
from vht_federate.errors import UnavailableError
from vht_federate.request_bodies import BodyLimit
from vht_federate.serving import Listener, answer_typed_errors, serve
from vht_federate.tcp_ports import LOOPBACK, free_port, free_ports

THREADS = 4
FLOOD = 30


class Blocking:
    """An application whose ``/slow`` waits until ``released``; ``entered`` counts those who wait in a thread."""

    def __init__(self) -> None:
        self.app, self.released, self.entered = answer_typed_errors(FastAPI()), threading.Event(), 0

        @self.app.get("/slow")
        def slow() -> dict[str, bool]:
            self.entered += 1
            return {"released": self.released.wait(300)}

        @self.app.get("/quick")
        def quick() -> dict[str, bool]:
            return {"released": self.released.is_set()}


@contextmanager
def served(*listeners: Listener, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``serve`` in a thread, where signals cannot be handled: it is stopped through its servers."""
    servers = []
    make = serving._server

    def remembered(listener: Listener) -> object:
        servers.append(make(listener))
        return servers[-1]

    async def run() -> None:
        asyncio.get_running_loop().add_signal_handler = lambda *_: None  # type: ignore[method-assign]
        await serve(list(listeners))

    monkeypatch.setattr(serving, "_server", remembered)
    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    await_that(lambda: len(servers) == len(listeners) and all(server.started for server in servers))
    try:
        yield
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def flooded(url: str, blocking: Blocking) -> Iterator[list[httpx.Response]]:
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(httpx.get(url, timeout=300, trust_env=False)))
        for _ in range(FLOOD)
    ]
    for thread in threads:
        thread.start()
    try:
        await_that(lambda: blocking.entered == THREADS)
        yield answers
    finally:
        blocking.released.set()
        for thread in threads:
            thread.join(300)


@pytest.mark.hostile("threads", control=True)
@pytest.mark.hostile("threads")
def test_a_listener_answers_while_all_threads_of_another_are_taken(
    monkeypatch: pytest.MonkeyPatch, answered: Answered
) -> None:
    outward, internal = Blocking(), Blocking()
    first, second = free_ports(LOOPBACK, LOOPBACK)
    with served(
        Listener(outward.app, LOOPBACK, first, threads=THREADS),
        Listener(internal.app, LOOPBACK, second),
        monkeypatch=monkeypatch,
    ):
        with flooded(f"http://{LOOPBACK}:{first}/slow", outward) as answers:
            assert httpx.get(f"http://{LOOPBACK}:{second}/quick", trust_env=False).status_code == 200
            with pytest.raises(httpx.ReadTimeout):  # the control: who shares the flooded listener waits
                httpx.get(f"http://{LOOPBACK}:{first}/quick", timeout=1.0, trust_env=False)
            assert answers == []
            answered("the operator's listener answers")
        assert [answer.json() for answer in answers] == [{"released": True}] * FLOOD


def test_a_taken_port_ends_the_other_listener_too(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = free_ports(LOOPBACK, LOOPBACK)
    with socket.socket() as taken:
        taken.bind((LOOPBACK, second))
        taken.listen()
        outward, internal = Blocking(), Blocking()
        with pytest.raises(UnavailableError) as caught:
            asyncio.run(serve([Listener(outward.app, LOOPBACK, first), Listener(internal.app, LOOPBACK, second)]))
    assert caught.value.code == "VHT-UNAVAILABLE-PORT"


# --- bodies -------------------------------------------------------------------------------------------------------

LIMIT = 1000
CHUNK = b"3e8\r\n" + b"x" * 1000 + b"\r\n"


def counting(*, limited: bool) -> tuple[FastAPI, list[int]]:
    """An application that reads its body and notes how much of it came, behind a limit or (the control) without."""
    app, read = answer_typed_errors(FastAPI()), [0]

    @app.post("/")
    async def body(request: Request) -> dict[str, int]:
        async for chunk in request.stream():
            read[0] += len(chunk)
        return {"read": read[0]}

    if limited:
        app.add_middleware(BodyLimit, maximum=LIMIT)
    return app, read


def sent(port: int, *lines: str, chunks: int) -> bytes:
    """What a server answers to a chunked body, byte by byte."""
    with socket.create_connection((LOOPBACK, port), timeout=60) as connection:
        head = ["POST / HTTP/1.1", "Host: x", "Connection: close", *lines]
        answer = b""
        with suppress(ConnectionError):  # refused before all of it was read
            connection.sendall("\r\n".join([*head, "", ""]).encode() + CHUNK * chunks + b"0\r\n\r\n")
        with suppress(ConnectionError):
            while more := connection.recv(65536):
                answer += more
        return answer


BOTH = ("Content-Length: 100", "Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    ("lines", "code"), [(BOTH, b"VHT-INPUT-FRAMING"), (BOTH[1:], b"VHT-INPUT-SIZE")], ids=["both", "chunked"]
)
@pytest.mark.parametrize(
    "limited",
    [
        pytest.param(True, marks=pytest.mark.hostile("chunked")),
        pytest.param(False, marks=pytest.mark.hostile("chunked", control=True)),
    ],
)
def test_a_chunked_body_passes_no_limit_whatever_length_it_claims(
    lines: tuple[str, ...], code: bytes, limited: bool, monkeypatch: pytest.MonkeyPatch, answered: Answered
) -> None:
    import uvicorn

    (app, read), port = counting(limited=limited), free_port()
    config = uvicorn.Config
    monkeypatch.setattr(uvicorn, "Config", lambda *args, **more: config(*args, **more, http="h11"))
    with served(Listener(app, LOOPBACK, port), monkeypatch=monkeypatch):
        answer = sent(port, *lines, chunks=200)
    if limited:
        assert b" 400 " in answer.splitlines()[0]
        assert code in answer
        answered(code.decode())
        assert read[0] <= LIMIT
    else:  # the control: h11 lets all of it through
        assert b" 200 " in answer.splitlines()[0]
        assert read[0] == 200_000
