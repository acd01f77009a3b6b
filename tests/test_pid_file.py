"""One process per directory, also where several start at the same moment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vht_federate.errors import UnavailableError
from vht_federate.processes import PidFile

TAKE = """
import sys, time
from pathlib import Path
from vht_federate.errors import UnavailableError
from vht_federate.processes import PidFile
print("ready", flush=True)
sys.stdin.readline()
try:
    with PidFile(Path(sys.argv[1])):
        print("mine", flush=True)
        sys.stdin.readline()
except UnavailableError as error:
    print(error.code, flush=True)
"""


def test_of_many_processes_that_start_at_once_exactly_one_gets_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "serve.pid"
    command = [sys.executable, "-c", TAKE, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    started = [subprocess.Popen(command, **pipes) for _ in range(6)]  # type: ignore[call-overload]
    try:
        assert [process.stdout.readline() for process in started] == ["ready\n"] * len(started)
        for process in started:
            process.stdin.write("go\n")
        lines = sorted(process.stdout.readline() for process in started)
        assert lines == sorted(["VHT-UNAVAILABLE-RUNNING\n"] * (len(started) - 1) + ["mine\n"])
    finally:
        for process in started:
            process.communicate("end\n", timeout=120)
    assert not path.exists()


def test_a_file_that_a_dead_process_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "serve.pid"
    path.write_text(f"{os.getpid()} 1.0\n")  # this pid, another start: a number that was given away again
    with PidFile(path) as pid_file, pytest.raises(UnavailableError) as caught, PidFile(path):
        pass
    assert pid_file.running() is None
    assert caught.value.code == "VHT-UNAVAILABLE-RUNNING"
