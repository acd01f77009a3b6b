"""The search for connections past the record finds one, of a process or of one that it started."""

import socket
import subprocess
import sys

import psutil
import pytest
from kit.outgoing_connections import Outgoing

CONNECTED = (
    "import socket, sys, time\n"
    "kept = socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=30)\n"
    "print('connected', flush=True)\n"
    "time.sleep(300)\n"
)
STARTED = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {CONNECTED!r}, sys.argv[1]])\n"


@pytest.mark.parametrize("program", [CONNECTED, STARTED], ids=["itself", "its child"])
def test_a_connection_past_the_record_is_seen_and_one_on_record_is_none(program: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as world:
        port = world.getsockname()[1]
        with subprocess.Popen([sys.executable, "-c", program, str(port)], stdout=subprocess.PIPE) as hospital:
            outgoing = Outgoing(lambda: {"hospital-1": hospital.pid})
            try:
                assert hospital.stdout
                assert hospital.stdout.readline() == b"connected\n"
                there, _ = world.accept()
                outgoing.look()
            finally:
                for process in [*psutil.Process(hospital.pid).children(recursive=True), hospital]:
                    process.kill()
            there.close()
    assert outgoing.seen["hospital-1"].strays(set()) == {("127.0.0.1", port)}
    assert outgoing.seen["hospital-1"].strays({port}) == set()
