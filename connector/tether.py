"""``python -m connector.tether PARENT PROGRAM ARGUMENTS…``: become PROGRAM, and die when process PARENT dies.

Linux keeps the request over execve (prctl(2), PR_SET_PDEATHSIG), so a killed connector leaves no SuperNode behind.
"""

import ctypes
import os
import signal
import sys

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Does not return."""
    parent, program = int(arguments[0]), arguments[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    os.execvp(program[0], program)  # noqa: S606 - the connector's own argument list


if __name__ == "__main__":
    main(sys.argv[1:])
