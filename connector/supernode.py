"""The hospital's two Flower processes, as children of the connector: SuperNode and courier's executor.

The SuperNode polls the coordinator's fleet API and never runs code itself (``--isolation process``); a warm executor
takes its messages and carries them to the enclave. A SuperNode that restarts while the SuperLink still counts it as
online is refused (exit 305), so restarts wait.
"""

import logging
import os
import secrets
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from connector.settings import CoordinatorSettings, NodeFiles
from connector.supernode_log import read_connection
from vht_federate.child_processes import tied_to_us
from vht_federate.files import create_private
from vht_federate.processes import stop_tree

__all__ = ["QUIET_FLOWER", "SuperNode", "commands", "create_key"]

log = logging.getLogger("vht.node.supernode")
RESTART_DELAY_S = 22.0
QUIET_FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "UV_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "OMP_NUM_THREADS": "1",
}


def create_key(path: Path) -> str:
    """Make the SuperNode's P-384 key in OpenSSH form (mode 0600, ``.pub`` beside it); keep one that exists.

    Returns the public key's text.
    """
    public_path = path.with_suffix(".pub")
    if not path.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        create_private(
            path,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            ),
        )
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        public_path.write_bytes(public + b"\n")
    return public_path.read_text().strip()


def commands(coordinator: CoordinatorSettings, files: NodeFiles, run_dir: Path, secret: Path) -> dict[str, list[str]]:
    """The two command lines, by name: every flag that Flower is given stands here."""
    runtime_api = f"127.0.0.1:{coordinator.supernode_port}"
    supernode = [
        str(Path(sys.executable).parent / "flower-supernode"),
        *("--superlink", coordinator.address, "--root-certificates", str(coordinator.ca)),
        *("--auth-supernode-private-key", str(files.supernode_key)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        *("--host", "127.0.0.1", "--port", str(coordinator.supernode_port)),
        *("--node-config", f'enclave-directory="{run_dir}"'),
    ]
    executor = [
        *(sys.executable, "-m", "strategies.warm_executor"),
        *("--runtime-api-address", runtime_api, "--superexec-auth-secret-file", str(secret)),
    ]
    return {"supernode": supernode, "executor": executor}


@dataclass
class _Child:
    name: str
    command: list[str]
    process: "subprocess.Popen[bytes] | None" = None
    starts: int = 0
    last_code: int | None = None
    output_at: tuple[int, int] = (0, 0)  # where in the log the output of this start begins, and of the one before


class SuperNode:
    """Keeps both processes up until ``close``; each in its own session, so that Ctrl-C reaches only the connector."""

    def __init__(
        self,
        coordinator: CoordinatorSettings,
        files: NodeFiles,
        run_dir: Path,
        *,
        restart_delay_s: float = RESTART_DELAY_S,
    ) -> None:
        self._files, self._delay_s = files, restart_delay_s
        secret = run_dir / "executor.secret"
        create_private(secret, secrets.token_hex(32).encode())
        self._children = [
            _Child(name, command) for name, command in commands(coordinator, files, run_dir, secret).items()
        ]
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._keep_up, args=(child,), name=f"vht-{child.name}") for child in self._children
        ]

    def start(self) -> None:
        self._files.flower_home.mkdir(parents=True, exist_ok=True)
        for thread in self._threads:
            thread.start()

    def status(self) -> dict[str, dict[str, object]]:
        """Per process: pid or None, how often it was started, its last exit code; of the SuperNode its connection."""
        status: dict[str, dict[str, object]] = {}
        for child in self._children:
            pid = child.process.pid if child.process and child.process.poll() is None else None
            status[child.name] = {"pid": pid, "starts": child.starts, "last_exit_code": child.last_code}
            if child.name == "supernode":
                connection = read_connection(self._files.supernode_log, *child.output_at, alive=pid is not None)
                status[child.name] |= {"connection": connection.state, "reason": connection.reason}
        return status

    def close(self) -> None:
        """Stop both, and whatever they started, by pid."""
        with self._lock:
            self._stop.set()
            running = [child.process for child in self._children if child.process and child.process.poll() is None]
        stopping = [
            threading.Thread(target=stop_tree, args=(process.pid,), kwargs={"patience_s": 3.0}) for process in running
        ]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=10)

    def _keep_up(self, child: _Child) -> None:
        """Runs as long as the child may: the kernel ties a child's life to the thread that started it."""
        while not self._stop.is_set():
            process = self._spawn(child)
            if process is None:
                return
            child.last_code = process.wait()
            if self._stop.is_set():
                return
            log.warning(
                "a Flower process ended; it is started again after a delay",
                extra={"facts": {"process": child.name, "exit_code": child.last_code, "delay_s": self._delay_s}},
            )
            if child.name == "executor":
                self._end_supernode()
            self._stop.wait(self._delay_s)

    def _end_supernode(self) -> None:
        """A SuperNode waits without end for the rest of a reply that an executor began: it is started anew as well."""
        with self._lock:
            (process,) = [other.process for other in self._children if other.name == "supernode"]
        if process is not None and process.poll() is None:
            stop_tree(process.pid, patience_s=3.0)

    def _spawn(self, child: _Child) -> "subprocess.Popen[bytes] | None":
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, **QUIET_FLOWER, "FLWR_HOME": str(self._files.flower_home), "PATH": path}
        with self._lock, self._files.supernode_log.open("ab") as output:
            if self._stop.is_set():
                return None
            child.output_at = (output.tell(), child.output_at[0])
            child.process = subprocess.Popen(
                tied_to_us(child.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
            child.starts += 1
        log.info("started", extra={"facts": {"process": child.name, "pid": child.process.pid, "starts": child.starts}})
        return child.process
