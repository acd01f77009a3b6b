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

from flwr.supercore.constant import TaskType

from strategies.runtime_tasks import RuntimeApi, next_tasks
from strategies.superlink import SuperLinkPaths
from vht_federate.child_processes import end_with_parent

__all__ = ["main", "start_server_app"]

POLL_S = 0.2
log = logging.getLogger("vht.executor")


def start_server_app(paths: SuperLinkPaths, token: str) -> "subprocess.Popen[bytes]":
    """A process that plays the run behind ``token``; it ends with this one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "strategies.server_process", str(paths.home)],
        stdin=subprocess.PIPE,
        preexec_fn=end_with_parent,
    )
    assert process.stdin is not None
    with process.stdin as line:
        line.write(f"{token}\n".encode())
    return process


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
        process = start_server_app(paths, token)
        log.info("ServerApp %d started", process.pid)
        threading.Thread(target=_await_end, args=(process,), daemon=True).start()


if __name__ == "__main__":
    main()
