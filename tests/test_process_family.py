"""The tests' own watch over processes sees what no mark in the environment shows."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from kit.process_family import Family, await_that, gone

ORPHAN = "import time; print('here', flush=True); time.sleep(300)"
PARENT = (
    "import subprocess, sys, time\n"
    f"subprocess.Popen([sys.executable, '-c', {ORPHAN!r}], env={{}}, start_new_session=True)\n"
    "time.sleep(300)\n"
)


@pytest.fixture
def parent() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_child_with_its_own_environment_and_session_that_outlives_its_parent_is_left(
    parent: "subprocess.Popen[bytes]",
) -> None:
    with Family(parent.pid, every_s=0.05) as family:
        assert parent.stdout
        assert parent.stdout.readline() == b"here\n"
        await_that(lambda: len(family.seen(f"-c {ORPHAN}")) == 1, 120, "the child is seen")
        (orphan,) = family.seen(f"-c {ORPHAN}")
        parent.kill()
        parent.wait(120)
        left = family.left(0)
        orphan.kill()
        assert [line.split()[0] for line in left] == [str(orphan.pid)]
        assert gone([orphan], 120) == []
        assert family.left(0) == []
