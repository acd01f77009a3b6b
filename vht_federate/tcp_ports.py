"""TCP ports that are drawn now and bound later: no two processes of one user are given the same.

``vht node init`` writes a port into settings and exits; the node binds it a minute later. Until then only a record can
tell other processes that the port is given away. The record is one number, the turn, in a file that is locked for the
moment of a draw: ports are given in turn, so a port comes again only after all the others of its range. Nothing
expires, so nothing depends on how fast anybody is, and nothing is left to clean.

The file lies under /tmp, whatever TMPDIR says, so that processes with different settings meet; in a directory that only
its owner can enter. A directory of that name that is somebody else's, a link or open to others is passed over.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from vht_federate.errors import UnavailableError

__all__ = ["LOOPBACK", "PORTS", "bind_error", "cannot_listen", "free_port", "free_ports"]

LOOPBACK = "127.0.0.1"
PORTS = range(12_000, 32_000)  # below the range that the kernel takes for outgoing connections
ROOTS = (Path("/tmp"), Path(tempfile.gettempdir()))  # noqa: S108 - only a directory that is ours is used in it
NAMES = 16  # directories that others hold are passed over so many times
LOCK_WAIT_S = 60.0  # a draw takes a millisecond: longer, and its process was stopped in the middle


def free_port(host: str = LOOPBACK, *, besides: Collection[int] = ()) -> int:
    """One TCP port, as ``free_ports`` draws it."""
    return free_ports(host, besides=besides)[0]


def free_ports(*hosts: str, besides: Collection[int] = ()) -> list[int]:
    """A TCP port for each of ``hosts``: all different, none of ``besides``, each free a moment ago.

    No process of this user on this machine is given one of them until all the other ports of PORTS have had their
    turn. Raises UnavailableError VHT-UNAVAILABLE-PORT, and VHT-UNAVAILABLE-ADDRESS for a host that is not this machine.
    """
    ports, taken = [], set(besides)
    if len(hosts) > len(PORTS):
        raise _no_port(f"{len(hosts)} ports do not fit between {PORTS.start} and {PORTS.stop}")
    for host in dict.fromkeys(hosts):
        if error := bind_error(host, 0):
            raise cannot_listen(host, 0, error)
    with _turn() as turn:
        for host in hosts:
            port = turn.next_free(host, taken)
            taken.add(port)
            ports.append(port)
    return ports


class _Turn:
    """The open and locked file of the turn."""

    def __init__(self, file: int) -> None:
        self.file = file

    def next_free(self, host: str, taken: Collection[int]) -> int:
        for _ in PORTS:
            port = self._next()
            if port not in taken and _is_free(host, port):
                return port
        raise _no_port(f"no free port found between {PORTS.start} and {PORTS.stop}")

    def _next(self) -> int:
        try:
            written = os.pread(self.file, 5, 0)
            place = int(written) if written.isdigit() else secrets.randbelow(len(PORTS))
            place %= len(PORTS)
            os.pwrite(self.file, b"%05d" % ((place + 1) % len(PORTS)), 0)
        except OSError as error:
            raise _no_port(f"the turn of ports cannot be kept ({error.strerror})") from error
        return PORTS[place]


def _is_free(host: str, port: int) -> bool:
    return bind_error(host, port) is None


def bind_error(host: str, port: int, *, reuse: bool = False) -> OSError | None:
    """Why a TCP socket cannot be bound there now; None where it can. ``reuse``: as a server binds (SO_REUSEADDR)."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as sock:
            if reuse:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as error:
        return error
    return None


def cannot_listen(host: str, port: int, error: OSError | None) -> UnavailableError:
    """The typed error for ``error``: an address that is not ours, a port that is not for us, or one in use."""
    if isinstance(error, socket.gaierror) or (error and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)):
        return UnavailableError(
            f"{host} is not an address of this machine",
            code="VHT-UNAVAILABLE-ADDRESS",
            hint="name one that it has ('ip address' lists them); with a port named as well, init asks for none here",
        )
    if error and error.errno in (errno.EACCES, errno.EPERM):
        return UnavailableError(
            f"this user may not listen on {host}:{port}",
            code="VHT-UNAVAILABLE-PORT",
            hint="ports below 1024 are the superuser's: choose another",
        )
    return UnavailableError(
        f"cannot listen on {host}:{port}: the port is in use",
        code="VHT-UNAVAILABLE-PORT",
        hint="another process holds this port; choose another, or stop it",
    )


@contextlib.contextmanager
def _turn() -> Iterator[_Turn]:
    """Raises UnavailableError VHT-UNAVAILABLE-PORT."""
    directory = _own_directory(ROOTS)
    try:
        file = os.open(directory / "turn", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _no_port(f"{directory / 'turn'} cannot be opened") from error
    try:
        _lock(file, directory)
        yield _Turn(file)
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # a child forked at this moment holds the same lock
        os.close(file)


def _lock(file: int, directory: Path) -> None:
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.monotonic() >= end:
            raise _no_port(f"another process has been drawing ports in {directory} for {LOCK_WAIT_S:g} s")
        time.sleep(0.005)


def _own_directory(roots: Sequence[Path]) -> Path:
    """The first that exists and is ours alone, else the first that can be made.

    Raises UnavailableError VHT-UNAVAILABLE-PORT.
    """
    name = f"vht-ports-{os.geteuid()}"
    candidates = [root / (f"{name}-{number}" if number else name) for root in roots for number in range(NAMES)]
    for directory in candidates:
        if _is_ours_alone(directory):
            return directory
    for directory in candidates:
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700)
        if _is_ours_alone(directory):  # another process of ours may have made it
            return directory
    raise _no_port(f"no directory {name} of our own in {' or '.join(map(str, dict.fromkeys(roots)))}")


def _is_ours_alone(directory: Path) -> bool:
    try:
        status = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _no_port(message: str) -> UnavailableError:
    return UnavailableError(message, code="VHT-UNAVAILABLE-PORT", hint="name one")
