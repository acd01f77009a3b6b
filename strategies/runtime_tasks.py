"""Tasks of a Flower Runtime API, as an executor of our own takes them: a SuperNode's messages, a SuperLink's runs."""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient

from strategies.superlink_socket import HOST, connected

__all__ = ["RuntimeApi", "next_tasks"]

RETRY_S = 20.0  # for one request: longer than a server that runs leaves one without an answer
UNANSWERED_S = 0.5
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
log = logging.getLogger("vht.executor")


@dataclass(frozen=True)
class RuntimeApi:
    """A SuperNode's at ``address`` (host:port on loopback), or the SuperLink's behind ``socket``."""

    address: str = HOST
    socket: Path | None = None

    def client(self, interceptor: SuperExecAuthHttpInterceptor | RuntimeTokenHttpInterceptor) -> RuntimeHttpClient:
        """A client of it. A connection that broke is made again.

        A SuperNode closes one that rested for five seconds, which is what a round may take: the next request is then
        lost, and with it, where nobody asks again, the reply and the SuperNode that waits for its parts.
        """
        again = RetryInvoker(
            wait_gen_factory=lambda: exponential(base_delay=0.05, max_delay=2),
            recoverable_exceptions=httpx.TransportError,
            max_tries=None,
            max_time=RETRY_S,
        )
        client = RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), interceptor],
            retry_invoker=again,
        )
        return connected(client, self.socket) if self.socket else client


def next_tasks(
    api: RuntimeApi, secret: bytes, kind: TaskType, *, poll_s: float, parent_pid: int | None = None
) -> Iterator[str]:
    """The token of each task of ``kind``, once taken, until the process ``parent_pid`` that started this one is gone.

    Tasks of other kinds are left where they are: nobody runs them.
    """
    auth = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE})
    request = AcquireTaskRequest(supported_task_types=[kind])
    with api.client(auth) as runtime:
        while parent_pid is None or os.getppid() == parent_pid:
            try:
                response = runtime.AcquireTask(request)
            except (httpx.HTTPError, ValueError) as error:
                log.debug("no answer yet: %s", type(error).__name__)
                time.sleep(UNANSWERED_S)
                continue
            if response.HasField("task") and response.token:
                yield response.token
            else:
                time.sleep(poll_s)
