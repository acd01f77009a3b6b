"""Two hospitals' SuperNodes and warm executors, and a coordinator, as real processes on loopback."""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deploy.pki import issue_certificate, make_authority
from strategies.coordinator import Coordinator
from strategies.superlink import flower_environment
from vht_federate.processes import stop_tree
from vht_federate.tcp_ports import free_port


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = 90.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.3)


def supernode_key(folder: Path) -> tuple[Path, str]:
    """An OpenSSH P-384 key as a file, and its public text."""
    key = ec.generate_private_key(ec.SECP384R1())
    path = folder / "supernode.key"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return path, public.decode()


@dataclass
class SmallFederation:
    coordinator: Coordinator
    service: "subprocess.Popen[bytes]"
    folder: Path
    enclaves: dict[str, Path] = field(default_factory=dict)  # node name -> its enclave directory
    nodes: dict[str, int] = field(default_factory=dict)
    processes: "dict[str, list[subprocess.Popen[bytes]]]" = field(default_factory=dict)

    def add(self, name: str) -> None:
        home = self.folder / name
        home.mkdir()
        enclaves = Path(tempfile.mkdtemp(prefix="vht-"))
        key, public = supernode_key(home)
        self.nodes[name] = self.coordinator.enrol(name, public).node_id
        secret = home / "superexec.secret"
        secret.write_text(secrets.token_hex(32))
        port = free_port()
        environment = flower_environment(home / "flower")
        programs = Path(sys.executable).parent
        supernode = [
            str(programs / "flower-supernode"),
            *("--superlink", self.coordinator.address, "--root-certificates", str(self.coordinator.config.ca)),
            *("--auth-supernode-private-key", str(key), "--host", "127.0.0.1", "--port", str(port)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
            *("--node-config", f'enclave-directory="{enclaves}"'),
        ]
        executor = [
            *(sys.executable, "-m", "strategies.warm_executor", "--runtime-api-address", f"127.0.0.1:{port}"),
            *("--superexec-auth-secret-file", str(secret), "--parent-pid", str(os.getpid())),
        ]
        started = []
        for program, command in (("supernode", supernode), ("executor", executor)):
            with (home / f"{program}.log").open("wb") as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        self.enclaves[name], self.processes[name] = enclaves, started

    def kill(self, name: str) -> None:
        for process in self.processes.pop(name, []):
            process.kill()
            process.wait()

    def online(self) -> bool:
        states = self.coordinator.control.nodes()
        return all(states.get(node) == "online" for node in self.nodes.values())

    def stop(self) -> None:
        for started in self.processes.values():
            for process in started:
                stop_tree(process.pid)
                process.wait()
        stop_tree(self.service.pid, patience_s=15)
        self.service.wait()
        for folder in self.enclaves.values():
            for path in folder.iterdir():
                path.unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextmanager
def small_federation(folder: Path, names: tuple[str, ...]) -> Iterator[SmallFederation]:
    now = datetime.now(UTC)
    make_authority(folder / "pki", now=now)
    issued = issue_certificate(folder / "pki", "coordinator", folder / "pki" / "coordinator", now=now)
    coordinator = Coordinator.init(
        folder / "coordinator", host="127.0.0.1", port=0, certificate=issued.certificate, key=issued.key, ca=issued.ca
    )
    with (folder / "coordinator.log").open("wb") as log:
        service = subprocess.Popen(
            [sys.executable, "-m", "vht_federate", "coordinator", "serve", str(coordinator.state)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    federation = SmallFederation(coordinator, service, folder)
    try:
        wait_until(coordinator.control.answers, "the SuperLink answering")
        for name in names:
            federation.add(name)
        wait_until(federation.online, "all SuperNodes coming online")
        yield federation
    finally:
        federation.stop()
