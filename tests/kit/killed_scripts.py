"""Scripts that die by SIGKILL: each in a process of its own, forked from one that has imported all that they need."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kit.places import TESTS
from vht_federate.processes import stop_tree

__all__ = ["Scripts", "scripts"]

LIMIT_S = 600.0  # only a hang takes so long

_FORKING = """
import json, os, sys, traceback
sys.path.insert(0, {kits!r})
{imports}
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            exec(compile(json.loads(line), "script", "exec"), {{}})
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Scripts:
    """Runs scripts one after the other."""

    def __init__(self, process: "subprocess.Popen[str]", said: Path) -> None:
        self._process, self._said = process, said

    def killed_by(self, script: str) -> int:
        """The signal that ended ``script``. Fails with its traceback where it came to its end or raised."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(script) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], LIMIT_S)[0]:
            stop_tree(self._process.pid)
        status = self._process.stdout.readline()
        assert status, self._said.read_text()
        assert os.WIFSIGNALED(int(status)), self._said.read_text()
        return os.WTERMSIG(int(status))


@contextmanager
def scripts(imports: str, folder: Path) -> Iterator[Scripts]:
    """``imports``: what is imported once, beside the kits of this folder."""
    log_path = folder / "scripts.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _FORKING.format(kits=str(TESTS), imports=imports)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    with process:  # closing its input ends it
        yield Scripts(process, log_path)
