"""Hospitals and databases for the connector's tests."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import pytest
from kit.fhir_api_client import Program, serving
from kit.hospital import Hospital, make_hospital, write_fhir

from connector.store import Database
from vht_federate.errors import UnavailableError
from vht_federate.tcp_ports import free_port

UNPRIVILEGED = 65534


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    """A provisioned node without data, its issuer running."""
    new_hospital = make_hospital(tmp_path)
    yield new_hospital
    new_hospital.issuer.stop()


@pytest.fixture
def stocked(hospital: Hospital) -> Hospital:
    """The same with forty patients."""
    with hospital.open(start=False) as node:
        node.ingest(write_fhir(hospital.root / "fhir"))
    return hospital


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """One ``stocked`` node for all tests of a file."""
    new_hospital = make_hospital(tmp_path_factory.mktemp("home"))
    with new_hospital.open(start=False) as node:
        node.ingest(write_fhir(new_hospital.root / "fhir"))
    yield new_hospital
    new_hospital.issuer.stop()


@pytest.fixture(scope="module")
def program(home: Hospital) -> Iterator[Program]:
    """A program registered at ``home``, which runs."""
    with serving(home) as registered_program:
        yield registered_program


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A throw-away PostgreSQL server of this machine's binaries, run by an unprivileged user."""
    programs = [Path(path).parent for path in sorted(glob("/usr/lib/postgresql/*/bin/initdb"))]  # noqa: PTH207
    if not programs or os.getuid() != 0:
        pytest.skip("no PostgreSQL server here that an unprivileged user could run")
    folder = Path(tempfile.mkdtemp(prefix="vht-pg-"))
    port = free_port()
    shutil.chown(folder, UNPRIVILEGED, UNPRIVILEGED)
    as_nobody = {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "cwd": folder, "env": {"LC_ALL": "C.UTF-8", "TZ": "UTC"}}
    initdb = [str(programs[-1] / "initdb"), "-D", str(folder / "data"), "-U", "node", "-A", "trust", "-N"]
    subprocess.run(initdb, check=True, capture_output=True, **as_nobody)
    server = subprocess.Popen(
        [programs[-1] / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **as_nobody,
    )
    url = f"postgresql+psycopg://node@127.0.0.1:{port}/postgres"
    try:
        probe = Database(url)
        for _ in range(6000):
            try:
                with probe.read():
                    break
            except UnavailableError:
                threading.Event().wait(0.05)
        probe.close()
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown: it does not wait for idle clients
        server.wait(300)
        shutil.rmtree(folder, ignore_errors=True)
