"""Closes an enclave off, before any code but this project's own runs in it, and says how far that went.

Walls, in the order in which they rise, each of the operating system's: limits on resources; a network of its own, where
the kernel lets this process have one; for a service that runs as root, a root folder and a user of its own; the file
view, by Landlock, else by a root folder of its own; no capability; the system calls. A process that could not
raise a wall goes on without it and says so: who started it decides whether that is enough (``IsolationLevel``). Only
the standard library is imported here: all but the last must rise before there is a second thread.
"""

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from connector.enclave.file_view import FileView, enter_view, landlock_version
from connector.enclave.own_root import enter_own_root
from connector.enclave.own_user import enter_own_user, give_folders, user_for
from connector.enclave.syscall_filter import install_filter
from vht_federate.domain.isolation import IsolationLevel

__all__ = ["Isolation", "Namespaces", "close_off", "drop_privileges", "enter_own_namespaces", "limit_resources"]

_NEW_USER, _NEW_NETWORK, _NEW_MOUNTS = 0x10000000, 0x40000000, 0x00020000
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITIES_V3 = 0x20080522
_OPEN_FILES = 4096
_LARGEST_FILE = 1 << 34  # of one file that an enclave writes
_FIRST_TO_GO = "500"  # when memory runs out: the enclave before the connector (proc_pid_oom_score_adj(5))


@dataclass(frozen=True)
class Isolation:
    """What holds: ``walls`` by name, in order."""

    walls: tuple[str, ...]

    @property
    def level(self) -> IsolationLevel:
        """``sandbox`` with a file view and the system calls, ``system-calls`` with these alone, else ``audit-hook``."""
        if "seccomp" not in self.walls:
            return IsolationLevel.AUDIT_HOOK
        view = any(wall == "own-root" or wall.startswith("landlock") for wall in self.walls)
        return IsolationLevel.SANDBOX if view else IsolationLevel.SYSTEM_CALLS


def close_off(view: FileView, name: str, *, open_devices: Callable[[], None] = lambda: None) -> Isolation:
    """Raise every wall that this machine has around this single-threaded process: it sees ``view`` and nothing else.

    ``name``: of the visit, by which a service that runs as root chooses a user. Raises OSError for a wall that broke
    off half-way: the process must not go on. ``open_devices`` runs with the files closed and the calls not yet: a GPU's
    driver makes a socket of its own when it is first used, which the process keeps.
    """
    limit_resources()
    walls = []
    user = user_for(name)
    namespaces = enter_own_namespaces(keep_user=user is not None)
    if namespaces is not None:
        walls.append("network-namespace")
        if namespaces.mounts and (landlock_version() == 0 or not namespaces.users) and enter_own_root(view):
            walls.append("own-root")
    if user is not None and "own-root" in walls:
        if give_folders(view, user) and enter_own_user(view, user):
            walls.append("own-user")
        else:
            give_folders(view, os.geteuid())
    version = enter_view(view)
    if version:
        walls.append(f"landlock-{version}")
    if drop_privileges():
        walls.append("no-privileges")
    open_devices()
    if install_filter(devices=view.has_gpu):
        walls.append("seccomp")
    return Isolation((*walls, "audit-hook"))


def limit_resources() -> None:
    """Private files, no core dump, so many files open, no file larger than 16 GiB, first to go when memory runs out.

    Address space is not limited: torch and CUDA reserve far more than they use. Nor are processes: Linux counts those
    of the whole user, and an enclave starts none.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, most in ((resource.RLIMIT_NOFILE, _OPEN_FILES), (resource.RLIMIT_FSIZE, _LARGEST_FILE)):
        hard = resource.getrlimit(kind)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))
    _write("/proc/self/oom_score_adj", _FIRST_TO_GO)


@dataclass(frozen=True)
class Namespaces:
    """What else than the network is a process's own: its table of mounts, its table of users."""

    mounts: bool
    users: bool


def enter_own_namespaces(*, keep_user: bool = False) -> Namespaces | None:
    """Move into a network of its own: a loopback that is down, nothing else. None where the kernel refuses.

    With it comes a table of mounts, where the kernel lets. Where that takes a table of users, this process keeps its
    user and its files; with ``keep_user`` root goes without one first, so that it may still choose its user.
    """
    if sys.platform != "linux":
        return None
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    for owner in (0, _NEW_USER) if keep_user else (_NEW_USER, 0):
        for mounts in (_NEW_MOUNTS, 0):
            if libc.unshare(owner | mounts | _NEW_NETWORK) == 0:
                if owner:
                    _keep_identity(user, group)
                return Namespaces(bool(mounts), bool(owner))
    return None


def _keep_identity(user: int, group: int) -> None:
    """Map our own user and group to themselves, so that the process is still called who it is (user_namespaces(7))."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        if not _write(f"/proc/self/{name}", text):  # shown as nobody, which changes nothing for the files it may use
            return


def _write(path: str, text: str) -> bool:
    try:
        Path(path).write_text(text)
    except OSError:
        return False
    return True


def drop_privileges() -> bool:
    """Give up every capability, for good: a service that runs as root has an enclave that merely owns root's files."""
    number = _CAPSET.get(os.uname().machine)
    if sys.platform != "linux" or number is None:
        return False
    header, none = struct.pack("=Ii", _CAPABILITIES_V3, 0), bytes(24)
    return bool(ctypes.CDLL(None).syscall(ctypes.c_long(number), header, none) == 0)
