"""Ports of services: drawn where nobody else is given them, and answered for only by the process that was asked."""

import socket
import subprocess
import sys
from pathlib import Path

import psutil

from vht_federate.processes import PidFile
from vht_federate.serving import free_port


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
