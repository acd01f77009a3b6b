"""What an enclave sees of the file system, closed by the kernel (Landlock, landlock(7)) for the rest of its life.

Folders and files to read, folders to write in, devices to use; whatever else there is cannot be opened, made, moved or
removed, by any code. Landlock binds the thread that asks for it and the threads that it starts: the view is entered
before there is a second one. Of later versions of the interface, what the kernel has is used as well: no file is moved
in or out (2) or truncated (3), no TCP (4), no ioctl on devices that are not listed (5), no abstract socket and no
signal to a process outside (6).
"""

import ctypes
import os
import stat
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FileView", "enter_view", "landlock_version"]

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every machine
_ASK_VERSION, _PATH_BENEATH = 1, 1
_NO_NEW_PRIVILEGES = 38

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_HANDLED = (0, (1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1, (1 << 15) - 1, (1 << 16) - 1)  # by version; the last stays
_OF_FILES = 1 | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV  # the rights that a rule on one file may name

_READ = _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
_USE = _READ_FILE | _WRITE_FILE | _IOCTL_DEV


@dataclass(frozen=True)
class FileView:
    """Folders and files to ``read``, folders to ``write`` in, devices to ``use``. What does not exist is left out.

    ``has_gpu``: a GPU is among the devices.
    """

    read: tuple[Path, ...]
    write: tuple[Path, ...] = ()
    use: tuple[Path, ...] = ()
    has_gpu: bool = False

    def rights(self) -> list[tuple[Path, int]]:
        rules = ((self.read, _READ), (self.write, _WRITE), (self.use, _USE))
        return [(path, rights) for paths, rights in rules for path in paths]


def landlock_version() -> int:
    """Of the kernel's Landlock; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, _syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION)))


def enter_view(view: FileView) -> int:
    """See nothing but ``view`` from here on. The version of Landlock that holds; 0: nothing changed.

    Nothing changes where the kernel has no Landlock, or this process a second thread.
    """
    version = landlock_version()
    if version == 0 or "\nThreads:\t1\n" not in Path("/proc/self/status").read_text():
        return 0
    handled = _HANDLED[min(version, len(_HANDLED) - 1)]
    attributes = struct.pack("=Q", handled)
    if version >= 4:
        attributes += struct.pack("=Q", 0b11)  # bind and connect over TCP
    if version >= 6:
        attributes += struct.pack("=Q", 0b11)  # abstract sockets and signals
    ruleset = _syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    if ruleset < 0:
        return 0
    try:
        for path, rights in view.rights():
            if not _allow(ruleset, path, rights & handled):
                return 0
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
            return 0
        return version if _syscall(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0)) == 0 else 0
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> bool:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # what cannot be named cannot be opened later either
        return True
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, place)
        added = _syscall(_ADD, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
        return added == 0
    finally:
        os.close(place)


def _syscall(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(ctypes.c_long(number), *arguments))
