"""A node's executor that stays warm: it takes tasks from the SuperNode's Runtime API and runs the installed courier.

Flower starts a process per message and runs the code of the FAB in it. Here the code of a FAB never runs at a
hospital: whatever app a run names, the task is carried by ``strategies.courier`` of this installation, in a process
that is already there. Started beside ``flower-supernode --isolation process``:

    python -m strategies.warm_executor --runtime-api-address 127.0.0.1:PORT --superexec-auth-secret-file FILE
"""

import argparse
import logging
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from strategies.courier import carry
from strategies.runtime_tasks import RuntimeApi, next_tasks

__all__ = ["Executor", "main"]

log = logging.getLogger("vht.executor")


@dataclass
class Executor:
    """Serves the tasks of one SuperNode, one at a time (a SuperNode handles one message at a time)."""

    runtime: RuntimeApi
    secret: bytes
    poll_s: float = 0.2
    parent_pid: int | None = None

    def serve(self) -> None:
        """Take tasks until the process that started this one is gone."""
        kind = TaskType.CLIENT_APP
        for token in next_tasks(self.runtime, self.secret, kind, poll_s=self.poll_s, parent_pid=self.parent_pid):
            self.run_task(token)

    def run_task(self, token: str) -> None:
        """Carry one task's message. What goes wrong is answered as Flower's error reply, never raised.

        A SuperNode may be done with a reply before all its parts came here, and then stores no more of them
        (``ObjectPushError``): that costs this message at most, not the node.
        """
        with self.runtime.client(RuntimeTokenHttpInterceptor(token)) as runtime:
            heartbeat = HeartbeatSender(lambda: _beat(runtime))
            heartbeat.start()
            context: Context | None = None
            status, details = SubStatus.FAILED, "the courier failed"
            try:
                message, context, _, _ = pull_task_input(runtime)
                push_message(runtime, _carried(message, context), context)
                status, details = SubStatus.COMPLETED, ""
            except Exception as error:  # the next task is another message's
                log.warning("a task was lost on its way: %s", type(error).__name__)
            finally:
                heartbeat.stop()
                with suppress(httpx.HTTPError, ValueError):
                    push_task_output(runtime, context=context, sub_status=status, details=details)


def _carried(message: Message, context: Context) -> Message:
    try:
        reply = carry(message.content, context.node_config, answering=message.metadata.message_id)
        return Message(reply, reply_to=message)
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
    runtime, secret = RuntimeApi(options.runtime_api_address), options.superexec_auth_secret_file.read_bytes()
    executor = Executor(runtime, secret, options.poll_s, options.parent_pid)

    def stop(*_: object) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    executor.serve()


if __name__ == "__main__":
    main()
