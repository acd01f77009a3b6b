"""Enclaves of real processes: one that stays up, and as many of one's own as a test wants to break."""

import tempfile
import textwrap
import threading
from pathlib import Path

import pytest
from kit.enclave_visits import SHIPPED, Courier, RecordingGate, planted, visit_spec

from connector.enclave.host import EnclaveHost
from vht_federate.errors import (
    VhtError,
)


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory(prefix="vht-t") as folder:  # short: a socket's path has 108 bytes
        yield Path(folder)


class Lost:
    def __init__(self) -> None:
        self.calls: list[tuple[str, VhtError]] = []
        self.happened = threading.Event()

    def __call__(self, visit: str, error: VhtError) -> None:
        self.calls.append((visit, error))
        self.happened.set()


@pytest.fixture(scope="module")
def standing(place: Path):
    """One enclave that stays up for the tests that do not break it: (info, gate, courier, host)."""
    run_dir = place / "run"
    run_dir.mkdir(mode=0o700)
    host, gate = EnclaveHost(run_dir), RecordingGate()
    try:
        info = host.start(visit_spec(place / "state"), SHIPPED.folder, gate)
        yield info, gate, Courier(run_dir), host
    finally:
        host.close()


@pytest.fixture
def gate(standing) -> RecordingGate:
    standing[1].asked.clear()
    standing[1].no.clear()
    return standing[1]


@pytest.fixture
def courier(standing) -> Courier:
    return standing[2]


@pytest.fixture
def fresh(tmp_path_factory, place: Path):
    """Start an enclave of one's own on a planted component: start(model source or None, …) -> (courier, gate, lost)."""
    hosts = []

    def start(model: str | None = None, *, spec_of=None):
        root = Path(tempfile.mkdtemp(dir=place))
        run_dir = root / "r"
        run_dir.mkdir(mode=0o700)
        lost, gate = Lost(), RecordingGate()
        host = EnclaveHost(run_dir, on_lost=lost)
        hosts.append(host)
        folder = planted(root / "component", textwrap.dedent(model)) if model else SHIPPED.folder
        spec = visit_spec(root / "state", component=folder)
        info = host.start(spec_of(spec) if spec_of else spec, folder, gate)
        return info, Courier(run_dir), gate, lost, host

    yield start
    for host in hosts:
        host.close()
