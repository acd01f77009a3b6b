"""The file view of a machine without Landlock: a root folder of one's own, in which nothing else is mounted.

In a mount table of its own, the process makes an empty root in memory, mounts there what it may see, each thing under
its own path, for reading only or for writing, turns to it, and lets go of the old one (pivot_root(2)). The calls that
could mount it again are closed by the filter of system calls, and need a capability that is dropped. Needs Linux 5.12
(mount_setattr(2)).
"""

import ctypes
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

from connector.enclave.file_view import FileView

__all__ = ["enter_own_root"]

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442
_BIND, _RECURSIVE, _PRIVATE, _NO_SETUID, _NO_DEVICES = 4096, 16384, 1 << 18, 2, 4
_DETACH = 2
_READ_ONLY, _HERE_AND_BELOW, _FROM_CWD = 1, 0x8000, -100


def enter_own_root(view: FileView) -> bool:
    """See nothing but ``view`` from here on. False, and nothing changed, where this process may mount nothing.

    Raises OSError for what failed half-way: the process must not go on.
    """
    pivot = _PIVOT_ROOT.get(os.uname().machine)
    if sys.platform != "linux" or pivot is None or not _can_set_attributes():
        return False
    here, plan = Path.cwd(), _plan(view)
    try:
        _mount(None, "/", None, _RECURSIVE | _PRIVATE)
        _mount("tmpfs", "/tmp", "tmpfs", _NO_SETUID | _NO_DEVICES)  # noqa: S108 - a place to mount on, in our own table
    except OSError:
        return False
    mask = os.umask(0o022)  # the way to what is shown is open to every user
    os.chdir("/tmp")  # noqa: S108
    for name in ("new", "old"):
        Path(name).mkdir()
    try:
        _mount("new", "new", None, _BIND)
        _call(pivot, b".", b"old")
    except OSError:  # e.g. where the root is the one that the kernel started with
        os.chdir(here)
        os.umask(mask)
        _unmount("/tmp")  # noqa: S108
        return False
    os.chdir("/")
    for path, source, writable in plan:
        _show(Path("/new") / path.relative_to("/"), Path("/old") / source.relative_to("/"), writable=writable)
    (Path("/new/proc/self")).symlink_to(str(os.getpid()))
    os.umask(mask)
    _unmount("/old")
    _set_read_only("/new", 0)
    os.chdir("/new")
    _call(pivot, b".", b".")
    _unmount(".")
    os.chdir("/")
    os.chdir(here)
    return True


def _plan(view: FileView) -> list[tuple[Path, Path, bool]]:
    """(path, what lies there in truth, writable): parents first, each also under its true path."""
    shown: dict[Path, tuple[Path, bool]] = {}
    for paths, writable in ((view.read, False), (view.use, True), (view.write, True)):
        for path in filter(Path.exists, paths):
            true = path.resolve()
            shown |= {path.absolute(): (true, writable), true: (true, writable)}
    return [(path, *shown[path]) for path in sorted(shown)]


def _show(at: Path, source: Path, *, writable: bool) -> None:
    if source.is_dir():
        at.mkdir(parents=True, exist_ok=True)
    elif not at.exists():
        at.parent.mkdir(parents=True, exist_ok=True)
        at.touch()
    elif not writable:
        return  # it lies in a folder that is shown already
    if writable:
        _mount(str(source), str(at), None, _BIND | _RECURSIVE)
        return
    with suppress(OSError):  # seen less: what needs it will say so
        _mount(str(source), str(at), None, _BIND | _RECURSIVE)
        _set_read_only(str(at), _HERE_AND_BELOW)
        return
    with suppress(OSError):  # shown, and could still be written: not shown
        _unmount(str(at))


def _can_set_attributes() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    answer = libc.syscall(ctypes.c_long(_MOUNT_SETATTR), ctypes.c_int(-1), None, 0, None, ctypes.c_size_t(0))
    return not (answer != 0 and ctypes.get_errno() == 38)  # ENOSYS


def _set_read_only(path: str, flags: int) -> None:
    attributes = struct.pack("=QQQQ", _READ_ONLY, 0, 0, 0)
    _call(_MOUNT_SETATTR, ctypes.c_int(_FROM_CWD), path.encode(), ctypes.c_uint(flags), attributes, ctypes.c_size_t(32))


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    texts = [text.encode() if text else None for text in (source, target, kind)]
    if libc.mount(*texts, ctypes.c_ulong(flags), None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}")


def _unmount(target: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(target.encode(), _DETACH) != 0:
        raise OSError(ctypes.get_errno(), f"umount {target}")


def _call(number: int, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *arguments) != 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
