"""The executor's line to its SuperNode: a connection that the SuperNode closed at rest costs no reply."""

import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from strategies.runtime_tasks import RuntimeApi

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/protobuf\r\ncontent-length: 0\r\n\r\n"


class Closing:
    """A SuperNode that closes the first ``times`` connections when a request has come, and answers on others."""

    def __init__(self, times: int) -> None:
        self.requests, self._times = 0, times
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                self.requests += 1
                if self.requests > self._times:
                    connection.sendall(ANSWER)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def supernode() -> Iterator[Closing]:
    closing = Closing(2)
    yield closing
    closing.close()


def test_a_request_on_a_connection_that_was_closed_is_made_again(supernode: Closing) -> None:
    with RuntimeApi(supernode.address).client(RuntimeTokenHttpInterceptor("token")) as runtime:
        runtime.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    assert supernode.requests == 3


def test_flowers_own_client_loses_it(supernode: Closing) -> None:
    """The control: without the executor's retries."""
    interceptors = [RuntimeTokenHttpInterceptor("token")]
    plain = RuntimeHttpClient.from_server_address(supernode.address, True, None, interceptors)
    with plain, pytest.raises(httpx.TransportError):
        plain.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    assert supernode.requests == 1
