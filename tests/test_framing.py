"""A caller hears why it was refused, though the enclave read no more than the header."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vht_federate.errors import RefusedError, UnavailableError
from vht_federate.framing import Call, call_enclave, receive_frame, send_frame

CALL = Call("v1", "train", 1, {}, b"x" * (8 << 20))


def _served(path: Path, answer: Callable[[socket.socket], None]) -> threading.Thread:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(10)
            answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def _refuse(connection: socket.socket) -> None:
    send_frame(connection, {"ok": False, "error": RefusedError("no", code="VHT-REFUSED-TOKEN").envelope()})


def test_a_refusal_before_the_body_was_read_is_heard(tmp_path: Path) -> None:
    thread = _served(tmp_path / "s", _refuse)
    with pytest.raises(RefusedError) as caught:
        call_enclave(tmp_path / "s", "token", CALL, timeout_s=60)
    assert caught.value.code == "VHT-REFUSED-TOKEN"
    thread.join(60)


def test_an_enclave_that_is_gone_in_the_middle_does_not_answer(tmp_path: Path) -> None:
    thread = _served(tmp_path / "s", lambda _: None)
    with pytest.raises(UnavailableError) as caught:
        call_enclave(tmp_path / "s", "token", CALL, timeout_s=60)
    assert caught.value.code == "VHT-UNAVAILABLE-ENCLAVE"
    thread.join(60)


def test_a_full_queue_of_connections_is_waited_for(tmp_path: Path) -> None:
    path, waiting = tmp_path / "s", []
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(2)
    try:
        while True:  # until the queue is full
            waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            waiting[-1].setblocking(False)
            try:
                waiting[-1].connect(str(path))
            except BlockingIOError:
                break
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(call_enclave, path, "token", Call("v1", "train", 1), timeout_s=60)
            for _ in range(len(waiting) - 1):
                listener.accept()[0].close()
            with listener.accept()[0] as connection:
                receive_frame(connection)
                send_frame(connection, {"ok": True, "result": {"answered": True}})
            assert answer.result(60).result == {"answered": True}
    finally:
        listener.close()
        for connection in waiting:
            connection.close()
