"""The SuperLink's one address: a Unix socket that the coordinator's own user alone can open.

Flower's control API asks nobody who they are: whoever reaches it is the coordinator. A TCP port, on loopback too, is
open to every user of the machine; a Unix socket has an owner. It lies in a folder of mode 0700 and has mode 0600
itself, and Linux lets nobody connect who may not write to it (unix(7)); only root passes, as root passes everything.
"""

import os
import socket
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vht_federate.client import IDLE_S
from vht_federate.errors import InputError

if TYPE_CHECKING:
    from flwr.supercore.protobuf.client import ProtobufClient

__all__ = ["HOST", "answers_at", "connected", "listen", "socket_address"]

HOST = "superlink"  # what requests over the socket name as their host; nobody resolves it
LONGEST_ADDRESS = 100  # sockaddr_un holds 108 bytes
BACKLOG = 512
TIMEOUT_S = 30.0
AnyClient = TypeVar("AnyClient", bound="ProtobufClient")


def listen(path: Path) -> socket.socket:
    """A listening socket at ``path``, in a folder that is closed to everybody else from now on.

    What a predecessor left at ``path`` is removed: the caller sees to it that none is alive.
    """
    path.parent.chmod(0o700)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(socket_address(path))
    path.chmod(0o600)  # before anybody can connect
    listener.listen(BACKLOG)
    return listener


def socket_address(path: Path) -> str:
    """``path`` as an address that fits: through this process's own view of the folder where the path is long.

    Raises InputError VHT-INPUT-STATE where it is long and this system has no such view.
    """
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        return str(path)
    about = path.parent.stat()
    try:
        folder = Path("/proc/self/fd") / str(_opened(path.parent, about.st_dev, about.st_ino))
        folder.stat()
    except (AttributeError, OSError) as error:
        raise InputError(
            f"the path of {path.name} is longer than the address of a Unix socket may be",
            code="VHT-INPUT-STATE",
            hint="give the coordinator a state directory with a shorter path",
        ) from error
    return str(folder / path.name)


@lru_cache(maxsize=64)
def _opened(folder: Path, _device: int, _inode: int) -> int:
    """A descriptor of ``folder``, kept open: another folder at the same path has another inode."""
    return os.open(folder, os.O_PATH | os.O_DIRECTORY)


def answers_at(path: Path) -> bool:
    """True where a process listens at ``path`` and this user may connect."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(socket_address(path))
        except OSError:
            return False
    return True


def connected(client: AnyClient, path: Path) -> AnyClient:
    """``client``, one of Flower's HTTP clients, with all its requests going through the socket at ``path``.

    Build it with ``server_address`` HOST and ``insecure``: nothing leaves the machine, and the file system says who
    is at the other end.
    """
    import httpx

    client.close()
    client._client = httpx.Client(
        transport=httpx.HTTPTransport(uds=socket_address(path), limits=httpx.Limits(keepalive_expiry=IDLE_S)),
        timeout=TIMEOUT_S,
        trust_env=False,
    )
    return client
