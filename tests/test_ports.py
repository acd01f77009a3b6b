"""Ports of services: drawn where nobody else is given them, and answered for only by the process that was asked."""

import asyncio
import fcntl
import os
import random
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from connector.cli.node import app as node_commands
from deploy.local_federation import Hospital, LocalFederation
from strategies.coordinator import Coordinator
from vht_federate import tcp_ports
from vht_federate.errors import UnavailableError
from vht_federate.processes import PidFile
from vht_federate.serving import Listener, require_free, serve
from vht_federate.tcp_ports import LOOPBACK, PORTS, free_port, free_ports

LAST_BELOW_THE_KERNELS = 32_767  # of net.ipv4.ip_local_port_range as kernels come
DRAWS, DRAWERS = 200, 6
DRAWER = """
import os, sys
from pathlib import Path
from vht_federate import tcp_ports
tcp_ports.ROOTS = (Path(sys.argv[1]),)
def say(word): print(word, flush=True), sys.stdin.readline()
if sys.argv[3] == "unlocked":
    tcp_ports.fcntl.flock = lambda *_: None
    pread = os.pread
    tcp_ports.os.pread = lambda *call: (pread(*call), say("has read"))[0]
    tcp_ports._is_free = lambda *_: True  # who looks holds the port for a moment: the next one would read on
say("ready")
print(*(tcp_ports.free_port() for _ in range(int(sys.argv[2]))))
"""


@pytest.fixture
def own_root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A turn that nobody else takes part in."""
    root = tmp_path_factory.mktemp("root")
    monkeypatch.setattr(tcp_ports, "ROOTS", (root,))
    return root


def turn_file(root: Path) -> Path:
    return root / f"vht-ports-{os.geteuid()}" / "turn"


@pytest.fixture
def drawers(tmp_path: Path) -> Iterator[Callable[[int, str], list[subprocess.Popen[str]]]]:
    """Processes that have started and wait for a line before they draw."""
    started: list[subprocess.Popen[str]] = []

    def start(draws: int, lock: str) -> list[subprocess.Popen[str]]:
        for _ in range(DRAWERS):
            started.append(
                subprocess.Popen([sys.executable, "-c", DRAWER, str(tmp_path), str(draws), lock], text=True,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )  # fmt: skip
        all_say(started, "ready")
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def all_say(processes: list[subprocess.Popen[str]], word: str) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{word}\n"


def all_go(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def ports_of(processes: list[subprocess.Popen[str]]) -> list[int]:
    return [int(port) for process in processes for port in process.communicate(timeout=300)[0].split()]


def test_a_free_port_is_below_those_that_the_kernel_gives_away() -> None:
    drawn = {free_port() for _ in range(50)}
    assert max(drawn) <= PORTS[-1] <= LAST_BELOW_THE_KERNELS
    assert len(drawn) == 50


def test_processes_that_draw_at_the_same_moment_are_never_given_the_same_port(drawers: Any) -> None:
    processes = drawers(DRAWS, "locked")
    all_go(processes)
    drawn = ports_of(processes)
    assert len(drawn) == len(set(drawn)) == DRAWERS * DRAWS


def test_without_the_lock_they_would_be(drawers: Any, tmp_path: Path) -> None:
    directory = turn_file(tmp_path).parent
    directory.mkdir(mode=0o700)
    (directory / "turn").write_text("00100")
    processes = drawers(1, "unlocked")
    all_go(processes)
    all_say(processes, "has read")
    all_go(processes)
    assert len(set(ports_of(processes))) == 1


def test_chance_alone_would_give_one_port_twice() -> None:
    rng = random.Random(1)
    drawn = [rng.choice(PORTS) for _ in range(DRAWERS * DRAWS)]
    assert len(set(drawn)) < len(drawn)


def test_threads_that_draw_at_the_same_moment_are_never_given_the_same_port(own_root: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        drawn = [port for ports in threads.map(lambda _: free_ports(LOOPBACK, LOOPBACK), range(100)) for port in ports]
    assert len(drawn) == len(set(drawn)) == 200


def test_a_port_comes_again_only_when_all_the_others_have_had_their_turn(
    own_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_ports, "_is_free", lambda *_: True)
    everybody = free_ports(*[LOOPBACK] * len(PORTS))
    assert sorted(everybody) == list(PORTS)
    assert [free_port(), free_port()] == everybody[:2]


@pytest.mark.parametrize("written", ["", "nonsense", "-5", "99999", "9" * 16])
def test_a_turn_that_says_nothing_starts_anywhere(own_root: Path, written: str) -> None:
    free_port()
    turn_file(own_root).write_text(written)
    assert len({free_port() for _ in range(20)}) == 20
    assert 0 <= int(turn_file(own_root).read_text()[:5]) < len(PORTS)


def test_the_turn_is_its_owners_alone(own_root: Path) -> None:
    free_port()
    assert turn_file(own_root).parent.stat().st_mode & 0o777 == 0o700
    assert turn_file(own_root).stat().st_mode & 0o777 == 0o600


def _link(place: Path, own: Path) -> None:
    own.mkdir(mode=0o700)
    place.symlink_to(own)


def _open_to_others(place: Path, _: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


@pytest.mark.parametrize(
    "squat", [_link, _open_to_others, lambda place, _: place.touch()], ids=["link", "open", "file"]
)
def test_what_is_not_a_directory_of_our_own_is_neither_used_nor_in_the_way(own_root: Path, squat: Any) -> None:
    squat(turn_file(own_root).parent, own_root / "elsewhere")
    assert free_port() != free_port()
    assert [path.parent.name for path in own_root.rglob("turn")] == [f"vht-ports-{os.geteuid()}-1"]


def test_where_every_name_is_somebody_elses_there_is_a_typed_error(
    own_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # what is made belongs to us, so not to that user
    with pytest.raises(UnavailableError) as caught:
        free_port()
    assert caught.value.code == "VHT-UNAVAILABLE-PORT"
    assert not list(own_root.rglob("turn"))


def test_the_other_root_serves_where_the_first_does_not(own_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_ports, "ROOTS", (own_root / "missing", own_root))
    assert free_port() in PORTS
    assert turn_file(own_root).is_file()


def test_a_process_that_stopped_in_the_middle_of_a_draw_is_a_typed_error(
    own_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_port()
    monkeypatch.setattr(tcp_ports, "LOCK_WAIT_S", 0.0)
    with turn_file(own_root).open("r+") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError) as caught:
            free_port()
    assert caught.value.code == "VHT-UNAVAILABLE-PORT"
    assert free_port() in PORTS


def test_where_no_port_is_free_there_is_a_typed_error(own_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_ports, "_is_free", lambda _, port: port == PORTS[7])
    assert free_port() == PORTS[7]
    with pytest.raises(UnavailableError) as caught:
        free_ports(LOOPBACK, LOOPBACK)
    assert caught.value.code == "VHT-UNAVAILABLE-PORT"


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
    """A turn that gives each port three times over: whoever does not look draws one twice."""
    drawn: list[int] = []

    def again(_: object) -> int:
        drawn.append(PORTS[len(drawn) // 3])
        return drawn[-1]

    monkeypatch.setattr(tcp_ports._Turn, "_next", again)
    return set(PORTS)


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
        "--port": 6, "--internal-port": 4, "--supernode-port": 4,
    }  # fmt: skip
    ports = [int(port) for _, port in options] + [federation.ports["platform"]]
    assert len(set(ports)) == len(ports) == 15
    assert few_ports >= set(ports)


def test_a_coordinator_chooses_one_port_and_has_no_other(few_ports: set[int], tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.touch()
    tls = {"certificate": file, "key": file, "ca": file}
    assert Coordinator.init(tmp_path / "drawn", host=LOOPBACK, port=0, **tls).config.port in few_ports
    assert Coordinator.init(tmp_path / "given", host=LOOPBACK, port=4_001, **tls).config.port == 4_001
    assert "superlink_port" not in (tmp_path / "given" / "coordinator.toml").read_text()


def test_a_coordinator_that_an_earlier_version_made_opens(tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.touch()
    made = Coordinator.init(tmp_path / "c", host=LOOPBACK, port=4_001, certificate=file, key=file, ca=file)
    with (made.state / "coordinator.toml").open("a") as settings:
        settings.write("superlink_port = 4002\n")
    assert Coordinator.open(made.state).config.port == 4_001


def _init_arguments(folder: Path) -> list[str]:
    file = str(folder / "file.pem")
    return [
        "init", str(folder / "node"), "--name", "h", "--certificate", file, "--key", file, "--ca", file,
        "--issuer-key", file, "--issuer-url", "https://127.0.0.1:1", "--dataset", "urn:d", "--categories", "51.1.a",
        "--coordinator", "127.0.0.1:2",
    ]  # fmt: skip


def test_a_node_that_chooses_its_ports_chooses_three(
    few_ports: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provisioned: list[Any] = []

    def provision(_: Path, settings: Any, __: Path) -> dict[str, str]:
        provisioned.append(settings)
        return {}

    monkeypatch.setattr("connector.provision.provision", provision)
    arguments = _init_arguments(tmp_path)
    for options in ([], ["--port", str(PORTS.start)], ["--supernode-port", str(PORTS.start + 5)]):
        result = CliRunner().invoke(node_commands, [*arguments, *options])
        assert result.exit_code == 0, result.output
        settings = provisioned.pop()
        ports = {settings.port, settings.internal_port, settings.coordinator.supernode_port}
        assert len(ports) == 3
        assert ports <= few_ports
        assert not options or int(options[1]) in ports


def test_a_port_that_another_process_holds_is_a_typed_error(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, free_port())) as other:
        port = other.getsockname()[1]
        with pytest.raises(UnavailableError) as caught:
            require_free(port, patience_s=0.3)
        assert caught.value.code == "VHT-UNAVAILABLE-PORT"
        assert str(port) in caught.value.message
        threading.Timer(0.5, other.close).start()
        require_free(port, patience_s=300)


@pytest.mark.parametrize("host", ["192.0.2.10", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_said_to_be_that(own_root: Path, host: str) -> None:
    for attempt in (lambda: free_port(host), lambda: require_free(free_port(), host=host, patience_s=0)):
        with pytest.raises(UnavailableError) as caught:
            attempt()
        assert caught.value.code == "VHT-UNAVAILABLE-ADDRESS"
        assert host in caught.value.message
    assert free_port(LOOPBACK) in PORTS


def test_a_port_in_use_is_said_to_be_that() -> None:
    with socket.create_server((LOOPBACK, free_port())) as other, pytest.raises(UnavailableError) as caught:
        require_free(other.getsockname()[1], patience_s=0)
    assert "in use" in caught.value.message


def test_a_node_for_another_machine_is_made_with_a_port_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is drawn, so nothing is asked of an address that this machine does not have."""
    file = tmp_path / "file.pem"
    file.touch()
    Coordinator.init(tmp_path / "c", host="192.0.2.10", port=9092, certificate=file, key=file, ca=file)
    monkeypatch.setattr("connector.provision.provision", lambda _, settings, __: {"outward": settings.outward_url})
    named = [*_init_arguments(tmp_path), "--host", "192.0.2.10", "--port", "8443"]
    assert "https://192.0.2.10:8443" in CliRunner().invoke(node_commands, named).output
    unnamed = CliRunner().invoke(node_commands, named[:-2])
    assert (unnamed.exit_code, "192.0.2.10 is not an address of this machine" in unnamed.output) == (5, True)


def test_a_listener_says_why_it_cannot_listen() -> None:
    with pytest.raises(UnavailableError) as caught:
        asyncio.run(serve([Listener(FastAPI(), "192.0.2.10", free_port())]))
    assert caught.value.code == "VHT-UNAVAILABLE-ADDRESS"
