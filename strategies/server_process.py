"""One run's process: the installed ServerApp, on the run whose token stands on the first line of standard input.

python -m strategies.server_process HOME
"""

import logging
import signal
import sys
from contextlib import suppress
from pathlib import Path

import httpx
from flwr.app import Context, RecordDict
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from strategies.server_app import main as play
from strategies.superlink import SuperLinkPaths
from strategies.superlink_socket import HOST, connected

__all__ = ["SocketGrid", "main", "play_task"]

log = logging.getLogger("vht.server_app")


class SocketGrid(HttpGrid):  # type: ignore[misc]
    """Flower's grid over the SuperLink's Unix socket."""

    def __init__(self, socket: Path, token: str) -> None:
        super().__init__(HOST, insecure=True, token=token)
        self._socket = socket

    def _connect(self) -> None:
        super()._connect()
        if self._client is not None:
            connected(self._client, self._socket)


def play_task(grid: HttpGrid) -> None:
    """Play the run that ``grid`` has the token of, and tell the SuperLink how it ended. Of its FAB nothing is read.

    What the ServerApp raises is logged; it stands in the run's ``run.json`` as well.
    """
    runtime = grid._runtime_client
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(runtime))  # SIGINT where the run was stopped
    context: Context | None = None
    status, details = SubStatus.FAILED, "the ServerApp was stopped"
    try:
        heartbeat.start()
        task = runtime.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        context, run = context_from_proto(task.context), run_from_proto(task.run)
        grid.set_run(run)
        context.run_config = dict(run.override_config)
        play(grid, context)
        status, details, context.state = SubStatus.COMPLETED, "", RecordDict()
    except Exception as error:
        log.exception("the ServerApp failed")
        details = f"the ServerApp failed ({type(error).__name__})"
    finally:
        grid._retry_invoker.max_tries = 1
        output = PushTaskOutputRequest(
            context=context_to_proto(context) if context else None, sub_status=status, details=details
        )
        with suppress(httpx.HTTPError, ValueError):
            runtime.PushTaskOutput(output)
        if heartbeat.is_running:
            heartbeat.stop()
        grid.close()


def main(arguments: list[str] | None = None) -> None:
    """Run to the end of the run, or until SIGTERM or SIGINT."""
    (home,) = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    def stop(*_: object) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    play_task(SocketGrid(SuperLinkPaths(Path(home)).socket, sys.stdin.readline().strip()))


if __name__ == "__main__":
    main()
