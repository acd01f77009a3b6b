"""The alarm of an enclave: an audit hook (PEP 578) over what Python code does in it.

It cannot be removed, it refuses, and it remembers the first forbidden act, which ends the visit. It is no wall: native
code passes it by. What holds against native code is the operating system's (``isolation``).
"""

import os
import socket
import sys
from pathlib import Path
from typing import Any

from vht_federate.errors import EgressError

__all__ = ["Fence"]

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_NETWORK = {
    "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.gethostbyaddr", "socket.getnameinfo",
}  # fmt: skip
_PROGRAMS = {
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
}  # fmt: skip
_CHANGES = {
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "shutil.copyfile", "shutil.move", "shutil.rmtree", "sqlite3.connect",
}  # fmt: skip


class Fence:
    """The audit hook. ``breach`` is the code of the first forbidden act, and stays."""

    def __init__(self, own: Path, others: Path) -> None:
        """``own``: the only folder with files to write. ``others``: a folder closed to reading, except ``own``."""
        self.breach: str | None = None
        self._own = os.path.realpath(own)
        self._others = os.path.realpath(others)

    def close(self) -> None:
        """From here on, for the life of the process."""
        sys.addaudithook(self._judge)

    def _judge(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _NETWORK or (event == "socket.__new__" and arguments[1] != socket.AF_UNIX):
            self._refuse("VHT-EGRESS-NETWORK", "an enclave opens no network connection")
        elif event in _PROGRAMS:
            self._refuse("VHT-EGRESS-PROGRAM", "an enclave starts no other program")
        elif event in _CHANGES:
            for path in arguments[:2]:
                if isinstance(path, (str, bytes, os.PathLike)):
                    self._writes(path)
        elif event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            self._opens(arguments[0], arguments[1], arguments[2])

    def _opens(self, path: Any, mode: str | None, flags: int | None) -> None:
        if (flags or 0) & _WRITES or any(letter in (mode or "") for letter in "wax+"):
            self._writes(path)
        elif self._inside(path, self._others) and not self._inside(path, self._own):
            self._refuse("VHT-EGRESS-FILE", "an enclave reads no other visit's files")

    def _writes(self, path: Any) -> None:
        if os.fsdecode(path) not in ("/dev/null", ":memory:") and not self._inside(path, self._own):
            self._refuse("VHT-EGRESS-FILE", "an enclave writes only in its own visit's folder")

    @staticmethod
    def _inside(path: Any, folder: str) -> bool:
        real = os.path.realpath(os.fsdecode(path))
        return real == folder or real.startswith(folder + os.sep)

    def _refuse(self, code: str, message: str) -> None:
        self.breach = self.breach or code
        raise EgressError(message, code=code)
