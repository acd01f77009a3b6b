"""A node's executor that stays warm: it takes tasks from the SuperNode's Runtime API and runs the installed courier.

Flower starts a process per message and runs the code of the FAB in it. Here the code of a FAB never runs at a
hospital: whatever app a run names, the task is carried by ``strategies.courier`` of this installation, in a process
that is already there. Started beside ``flower-supernode --isolation process``:

    python -m strategies.warm_executor --runtime-api-address 127.0.0.1:PORT --superexec-auth-secret-file FILE
"""

import argparse
import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from strategies.courier import carry

__all__ = ["Executor", "main"]

RETRY_S = 20.0  # for one request: longer than a SuperNode that runs leaves one without an answer
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
log = logging.getLogger("vht.executor")


@dataclass
class Executor:
    """Serves the tasks of one SuperNode, one at a time (a SuperNode handles one message at a time)."""

    address: str
    secret: bytes
    poll_s: float = 0.2
    parent_pid: int | None = None

    def client(self, interceptor: SuperExecAuthHttpInterceptor | RuntimeTokenHttpInterceptor) -> RuntimeHttpClient:
        """A client of the SuperNode's Runtime API. A connection that broke is made again.

        The SuperNode closes one that rested for five seconds, which is what a round may take: the next request is then
        lost, and with it, where nobody asks again, the reply and the SuperNode that waits for its parts.
        """
        again = RetryInvoker(
            wait_gen_factory=lambda: exponential(base_delay=0.05, max_delay=2),
            recoverable_exceptions=httpx.TransportError,
            max_tries=None,
            max_time=RETRY_S,
        )
        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), interceptor],
            retry_invoker=again,
        )

    def orphaned(self) -> bool:
        return self.parent_pid is not None and os.getppid() != self.parent_pid

    def serve(self) -> None:
        """Take tasks until the process that started this one is gone."""
        auth = SuperExecAuthHttpInterceptor(master_secret=self.secret, protected_methods={ACQUIRE})
        with self.client(auth) as runtime:
            request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
            while not self.orphaned():
                try:
                    response = runtime.AcquireTask(request)
                except (httpx.HTTPError, ValueError) as error:
                    log.debug("the SuperNode does not answer yet: %s", type(error).__name__)
                    time.sleep(0.5)
                    continue
                if response.HasField("task") and response.token:
                    self.run_task(response.token)
                else:
                    time.sleep(self.poll_s)

    def run_task(self, token: str) -> None:
        """Carry one task's message. What goes wrong is answered as Flower's error reply, never raised."""
        with self.client(RuntimeTokenHttpInterceptor(token)) as runtime:
            heartbeat = HeartbeatSender(lambda: _beat(runtime))
            heartbeat.start()
            context: Context | None = None
            status, details = SubStatus.FAILED, "the courier failed"
            try:
                message, context, _, _ = pull_task_input(runtime)
                push_message(runtime, _carried(message, context), context)
                status, details = SubStatus.COMPLETED, ""
            except (httpx.HTTPError, RuntimeError, ValueError) as error:
                log.warning("a task was lost on its way: %s", type(error).__name__)
            finally:
                heartbeat.stop()
                with suppress(httpx.HTTPError, ValueError):
                    push_task_output(runtime, context=context, sub_status=status, details=details)


def _carried(message: Message, context: Context) -> Message:
    try:
        return Message(carry(message.content, context.node_config), reply_to=message)
    except Exception as error:
        log.exception("the courier raised an exception")
        reason = f"the courier raised {type(error).__name__}"
        return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message)


def _beat(runtime: RuntimeHttpClient) -> bool:
    """Keep the task's token alive. A beat that fails is tried again; it must not end this process."""
    with suppress(httpx.HTTPError, ValueError):
        runtime.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        return True
    return False


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="strategies.warm_executor", description="Serve a SuperNode's tasks.")
    parser.add_argument("--runtime-api-address", required=True, help="host:port of the SuperNode's Runtime API")
    parser.add_argument("--superexec-auth-secret-file", required=True, type=Path)
    parser.add_argument("--parent-pid", type=int, default=None, help="end when this process is gone")
    parser.add_argument("--poll-s", type=float, default=0.2)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    executor = Executor(
        options.runtime_api_address, options.superexec_auth_secret_file.read_bytes(), options.poll_s, options.parent_pid
    )

    def stop(*_: object) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    executor.serve()


if __name__ == "__main__":
    main()
