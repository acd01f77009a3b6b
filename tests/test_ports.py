"""Ports of services: drawn where nobody else is given them, and answered for only by the process that was asked."""

import secrets
import socket
import subprocess
import sys
import threading
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from connector.cli import app as node_commands
from deploy.local import Hospital, LocalFederation
from strategies.coordinator import Coordinator
from vht_federate.errors import UnavailableError
from vht_federate.processes import PidFile
from vht_federate.serving import LOOPBACK, PORTS, free_port, free_ports, require_free


def test_a_free_port_is_never_one_that_the_kernel_gives_away() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    drawn = {free_port() for _ in range(50)}
    assert max(drawn) < low
    assert len(drawn) > 40


def test_another_process_on_the_port_is_not_taken_for_the_service(tmp_path: Path) -> None:
    pid_file = PidFile(tmp_path / "serve.pid")
    with socket.create_server(("127.0.0.1", free_port())) as other, pid_file:
        port = other.getsockname()[1]
        assert pid_file.listens(port)  # this process holds both
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        try:
            pid_file.path.write_text(f"{child.pid} {psutil.Process(child.pid).create_time()}\n")
            assert pid_file.running() == child.pid
            assert not pid_file.listens(port)
        finally:
            child.kill()
            child.wait()
        assert not pid_file.listens(port)


@pytest.fixture
def few_ports(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Chance gives each port many times over: whoever does not look draws one twice."""
    drawn: list[int] = []

    def below(_: int) -> int:
        drawn.append(len(drawn) // 3)
        return drawn[-1]

    monkeypatch.setattr(secrets, "randbelow", below)
    return set(range(PORTS.start, PORTS.stop))


def test_ports_drawn_together_are_all_different_and_none_that_was_named(few_ports: set[int]) -> None:
    named = {PORTS.start, PORTS.start + 2}
    drawn = free_ports(*[LOOPBACK] * 12, besides=named)
    assert len(set(drawn)) == 12
    assert few_ports >= set(drawn)
    assert not named & set(drawn)


def test_a_local_federation_gives_every_process_a_port_of_its_own(few_ports: set[int], tmp_path: Path) -> None:
    calls: list[tuple[str, ...]] = []
    commands: Any = SimpleNamespace(run=lambda *call: calls.append(call))
    hospitals = [Hospital(f"hospital-{number}", tmp_path) for number in range(1, 5)]
    terms: Any = SimpleNamespace(epsilon_cap=1.0, delta=1e-5)
    federation = LocalFederation(tmp_path, hospitals, terms, commands)
    federation._provision()
    federation._initialise_nodes()
    options = [pair for call in calls for pair in pairwise(call) if pair[0].endswith("-port")]
    assert Counter(option for option, _ in options) == {
        "--port": 6, "--internal-port": 4, "--supernode-port": 4, "--superlink-port": 1,
    }  # fmt: skip
    ports = [int(port) for _, port in options] + [federation.ports["platform"]]
    assert len(set(ports)) == len(ports) == 16
    assert few_ports >= set(ports)


def test_a_coordinator_that_chooses_its_ports_chooses_two(few_ports: set[int], tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.touch()
    tls = {"certificate": file, "key": file, "ca": file}
    for number, port in enumerate((0, PORTS.start)):
        config = Coordinator.init(tmp_path / str(number), host=LOOPBACK, port=port, **tls).config
        assert config.port != config.superlink_port
        assert {config.port, config.superlink_port} <= few_ports
    given = Coordinator.init(tmp_path / "given", host=LOOPBACK, port=4_001, superlink_port=4_002, **tls).config
    assert (given.port, given.superlink_port) == (4_001, 4_002)


def test_a_node_that_chooses_its_ports_chooses_three(
    few_ports: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def provision(_: Path, settings: Any, __: Path) -> dict[str, str]:
        made.append(settings)
        return {}

    monkeypatch.setattr("connector.provision.provision", provision)
    file = str(tmp_path / "file.pem")
    arguments = [
        "init", str(tmp_path / "node"), "--name", "h", "--certificate", file, "--key", file, "--ca", file,
        "--issuer-key", file, "--issuer-url", "https://127.0.0.1:1", "--dataset", "urn:d", "--categories", "51.1.a",
        "--coordinator", "127.0.0.1:2",
    ]  # fmt: skip
    for given in ([], ["--port", str(PORTS.start)], ["--supernode-port", str(PORTS.start + 5)]):
        done = CliRunner().invoke(node_commands, [*arguments, *given])
        assert done.exit_code == 0, done.output
        settings = made.pop()
        ports = {settings.port, settings.internal_port, settings.coordinator.supernode_port}
        assert len(ports) == 3
        assert ports <= few_ports
        assert not given or int(given[1]) in ports


def test_a_port_that_another_process_holds_is_a_typed_error(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, free_port())) as other:
        port = other.getsockname()[1]
        with pytest.raises(UnavailableError) as caught:
            require_free(port, patience_s=0.3)
        assert caught.value.code == "VHT-UNAVAILABLE-PORT"
        assert str(port) in caught.value.message
        threading.Timer(0.5, other.close).start()
        require_free(port, patience_s=60)


def test_a_coordinator_whose_superlink_port_is_taken_says_so_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vht_federate.serving.PATIENCE_S", 0.3)
    file = tmp_path / "file.pem"
    file.touch()
    made = Coordinator.init(tmp_path / "c", host=LOOPBACK, port=0, certificate=file, key=file, ca=file)
    assert tomllib.loads((tmp_path / "c" / "coordinator.toml").read_text())["superlink_port"]
    with socket.create_server((LOOPBACK, made.config.superlink_port)), pytest.raises(UnavailableError) as caught:
        made.serve(lambda: None)
    assert caught.value.code == "VHT-UNAVAILABLE-PORT"
    assert not (tmp_path / "c" / "logs").exists()
    assert made.pid_file.running() is None
