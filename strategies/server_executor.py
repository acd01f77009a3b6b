"""The coordinator's executor: each run is played by the ServerApp of this installation, in a process of its own.

Flower's executor unpacks the FAB that a run brings, runs its code, and hands the run's token over on a command line,
where every user of the machine can read it. Here no FAB is even unpacked: whatever app a run names, the process plays
``strategies.server_app``, and it reads its token from its standard input.

    python -m strategies.server_executor HOME --parent-pid PID
"""

import argparse
import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import PushTaskOutputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor

from strategies.runtime_tasks import RuntimeApi, next_tasks
from strategies.superlink import SuperLinkPaths
from vht_federate.child_processes import end_with_parent

__all__ = ["main", "play_run", "start_server_app"]

POLL_S = 0.2
log = logging.getLogger("vht.executor")


def start_server_app(paths: SuperLinkPaths, token: str) -> "subprocess.Popen[bytes]":
    """A process that plays the run behind ``token``; it ends with this one.

    Raises OSError or SubprocessError where the machine has no room for it; then there is no process.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "strategies.server_process", str(paths.home)],
        stdin=subprocess.PIPE,
        preexec_fn=end_with_parent,
    )
    try:
        assert process.stdin is not None
        with process.stdin as line:
            line.write(f"{token}\n".encode())
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def play_run(api: RuntimeApi, paths: SuperLinkPaths, token: str) -> None:
    """Start the run behind ``token``. One that cannot be started is reported as failed: others go on meanwhile."""
    try:
        process = start_server_app(paths, token)
    except Exception as error:
        log.exception("a ServerApp could not be started")
        _report_failed(api, token, f"the ServerApp could not be started ({type(error).__name__})")
        return
    log.info("ServerApp %d started", process.pid)
    try:
        threading.Thread(target=_await_end, args=(process,), daemon=True).start()
    except RuntimeError:  # no thread is to be had: its end stays unseen, the run goes on
        log.warning("nobody waits for ServerApp %d", process.pid)


def _report_failed(api: RuntimeApi, token: str, details: str) -> None:
    try:
        with api.client(RuntimeTokenHttpInterceptor(token)) as runtime:
            runtime.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.FAILED, details=details))
    except Exception as error:
        log.warning("nor could that be reported: %s", type(error).__name__)


def _await_end(process: "subprocess.Popen[bytes]") -> None:
    code = process.wait()
    log.info("ServerApp %d ended with %d", process.pid, code)


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="strategies.server_executor", description="Play a SuperLink's runs.")
    parser.add_argument("home", type=Path, help="folder with the SuperLink's socket and secret")
    parser.add_argument("--parent-pid", type=int, default=None, help="end when this process is gone")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    paths = SuperLinkPaths(options.home)
    api = RuntimeApi(socket=paths.socket)

    def stop(*_: object) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    secret, kind = paths.secret.read_bytes(), TaskType.SERVER_APP
    for token in next_tasks(api, secret, kind, poll_s=POLL_S, parent_pid=options.parent_pid):
        play_run(api, paths, token)


if __name__ == "__main__":
    main()
