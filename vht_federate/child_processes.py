"""Child processes that end with the process that started them, however that ends.

As a program: ``python -m vht_federate.child_processes PARENT PROGRAM ARGUMENTS…`` becomes PROGRAM. Linux keeps the
request over execve (prctl(2), PR_SET_PDEATHSIG), so a killed connector leaves no SuperNode behind. The kernel ties a
child's life to the thread that started it.
"""

import ctypes
import os
import signal
import sys

__all__ = ["end_with_parent", "tied_to_us"]

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def end_with_parent() -> None:
    """Linux: SIGTERM for this process when its parent is gone. Fit for ``preexec_fn``: loads and allocates nothing."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def tied_to_us(command: list[str]) -> list[str]:
    """``command`` as one that ends with this process: for threads, where no ``preexec_fn`` is safe."""
    return [sys.executable, "-m", "vht_federate.child_processes", str(os.getpid()), *command]


def main(arguments: list[str]) -> None:
    """Does not return."""
    parent, program = int(arguments[0]), arguments[1:]
    end_with_parent()
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    os.execvp(program[0], program)  # noqa: S606 - the caller's own argument list


if __name__ == "__main__":
    main(sys.argv[1:])
