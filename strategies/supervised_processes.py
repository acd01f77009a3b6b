"""Child processes that stay up: started, restarted with a growing pause when they die, stopped by pid."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vht_federate.child_processes import end_with_parent
from vht_federate.processes import stop_tree

__all__ = ["Child", "supervise"]


@dataclass
class Child:
    """One supervised process. ``command`` is called at each start; output goes to ``log``."""

    name: str
    command: Callable[[], list[str]]
    environment: Mapping[str, str]
    log: Path
    starts: int = field(default=0, init=False)
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    _not_before: float = field(default=0.0, init=False)

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def keep_up(self, now: float) -> bool:
        """Start the process where it does not run; the pause grows 0, 1, 2, 4 … 30 s. True where it was started."""
        if self.pid is not None or now < self._not_before:
            return False
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C at the terminal reaches the supervisor alone, which then stops by pid.
            self.process = subprocess.Popen(
                self.command(),
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self._not_before = now + min(30.0, 2.0 ** max(0, self.starts - 1) if self.starts else 0.0)
        self.starts += 1
        return True

    def stop(self) -> None:
        if self.process is None:
            return
        stop_tree(self.process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)


async def supervise(children: list[Child], *, every_s: float = 0.5) -> None:
    """Keep ``children`` up until cancelled, then stop them, the last first."""
    try:
        while True:
            for child in children:
                child.keep_up(time.monotonic())
            await asyncio.sleep(every_s)
    finally:
        for child in reversed(children):
            child.stop()
