"""The system calls of an enclave: those that it needs, and no other, for the rest of its life (seccomp(2)).

No program starts (execve, fork, clone without CLONE_THREAD), no socket is made or connected and no descriptor passed,
no other process is traced, signalled or read, no namespace, mount, key, io_uring or BPF program is made, and no file's
mode, owner, times or length is changed by its name. A call that is not on the list is answered ENOSYS, so that the C
library takes the way it takes on an older kernel (clone3: clone); one on the list whose arguments are not allowed,
EPERM. A call in another machine's numbering (i386 on x86_64) ends the process; x32 is answered ENOSYS.

The program is classic BPF over ``struct seccomp_data``: nr at 0, arch at 4, arguments as 64 bits from 16 (little
endian: their low halves at 16, 24, …). Every argument judged here is 32 bits wide to the kernel.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from connector.enclave.syscall_numbers import NUMBERS

__all__ = ["ARCHITECTURES", "Architecture", "Instruction", "filter_program", "install_filter"]

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant

_LOAD, _EQUAL, _AT_LEAST, _AND, _ANSWER = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_NR, _ARCH, _ARGUMENTS = 0, 4, 16

_CLONE_VM, _CLONE_THREAD = 0x100, 0x10000
_CLONE_NEW = 0x7E020000  # every namespace that clone can make
_PRCTL = (
    15, 16,  # PR_SET_NAME, PR_GET_NAME
    3, 21, 30, 39,  # read only: PR_GET_DUMPABLE, _SECCOMP, _TIMERSLACK, _NO_NEW_PRIVS
    41, 42,  # PR_SET_THP_DISABLE, PR_GET_THP_DISABLE
    0x53564D41,  # PR_SET_VMA: names of mappings
)  # fmt: skip
_IOCTL = (
    0x5401, 0x5413,  # TCGETS, TIOCGWINSZ: is this a terminal?
    0x541B, 0x5421, 0x5450, 0x5451,  # FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
)  # fmt: skip
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 36, 37, 38, 1030, 1031, 1032, 1033, 1034)  # no signals, no leases, no owners
_SIGNALS_ELSEWHERE = (0x8901, 0x8902, 0x5452)  # FIOSETOWN, SIOCSPGRP, FIOASYNC

_NO_NEW_PRIVILEGES, _SET_FILTER, _ALL_THREADS = 38, 1, 1


@dataclass(frozen=True)
class Architecture:
    """``column`` of ``NUMBERS``; ``audit``: AUDIT_ARCH_*; ``x32``: a second numbering's bit; ``seccomp``: its nr."""

    column: int
    audit: int
    x32: int | None
    seccomp: int


ARCHITECTURES: Mapping[str, Architecture] = {
    "x86_64": Architecture(0, 0xC000003E, 0x40000000, 317),
    "aarch64": Architecture(1, 0xC00000B7, None, 277),
}


def filter_program(architecture: Architecture, process: int, *, devices: bool = False) -> list[Instruction]:
    """The filter for the process with id ``process``. ``devices``: it holds a GPU, whose driver speaks by ioctl."""
    program = [(_LOAD, 0, 0, _ARCH), *_unless_equal(architecture.audit, [_answer(_KILL)]), (_LOAD, 0, 0, _NR)]
    if architecture.x32 is not None:
        program += [(_AT_LEAST, 0, 1, architecture.x32), _answer(_REFUSE | errno.ENOSYS)]
    judged = _judged(process, devices)
    for name, numbers in NUMBERS.items():
        number = numbers[architecture.column]
        if number is not None:
            program += _if_equal(number, judged.get(name, [_answer(_ALLOW)]))
    return [*program, _answer(_REFUSE | errno.ENOSYS)]


def _judged(process: int, devices: bool) -> dict[str, list[Instruction]]:
    """Calls that are allowed with some arguments; each list ends in an answer."""
    own, itself = (process,), (0, process)
    ioctl = [*_refuse_values(1, _SIGNALS_ELSEWHERE), _answer(_ALLOW)] if devices else _only_values(1, _IOCTL)
    return {
        "clone": _only_threads(),
        "prctl": _only_values(0, _PRCTL),
        "ioctl": ioctl,
        "fcntl": _only_values(1, _FCNTL),
        "kill": _only_values(0, own),
        "tgkill": _only_values(0, own),
        "prlimit64": _only_values(0, itself),
    }


def _only_threads() -> list[Instruction]:
    needed = _CLONE_VM | _CLONE_THREAD
    return [
        _argument(0),
        (_AND, 0, 0, needed | _CLONE_NEW),
        *_unless_equal(needed, [_answer(_REFUSE | errno.EPERM)]),
        _answer(_ALLOW),
    ]


def _only_values(place: int, values: tuple[int, ...]) -> list[Instruction]:
    allowed = [instruction for value in values for instruction in _if_equal(value, [_answer(_ALLOW)])]
    return [_argument(place), *allowed, _answer(_REFUSE | errno.EPERM)]


def _refuse_values(place: int, values: tuple[int, ...]) -> list[Instruction]:
    refused = [step for value in values for step in _if_equal(value, [_answer(_REFUSE | errno.EPERM)])]
    return [_argument(place), *refused]


# --- assembling -----------------------------------------------------------------------------------------------------


def _argument(place: int) -> Instruction:
    return _LOAD, 0, 0, _ARGUMENTS + 8 * place


def _answer(action: int) -> Instruction:
    return _ANSWER, 0, 0, action


def _if_equal(value: int, then: list[Instruction]) -> list[Instruction]:
    """``then`` where the accumulator is ``value``; it must end in an answer, and may change the accumulator."""
    return [(_EQUAL, 0, len(then), value), *then]


def _unless_equal(value: int, then: list[Instruction]) -> list[Instruction]:
    return [(_EQUAL, len(then), 0, value), *then]


# --- installing -----------------------------------------------------------------------------------------------------


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def install_filter(*, devices: bool = False) -> bool:
    """Bind every thread of this process, and those to come. False where kernel or machine has no such filter."""
    architecture = ARCHITECTURES.get(platform.machine())
    if os.uname().sysname != "Linux" or architecture is None or struct.calcsize("P") != 8:
        return False
    return load_program(filter_program(architecture, os.getpid(), devices=devices), architecture)


def load_program(program: list[Instruction], architecture: Architecture) -> bool:
    """Have the kernel judge the calls of all threads by ``program``. False where it does not."""
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    instructions = ctypes.create_string_buffer(packed, len(packed))
    loaded = _Program(len(program), ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    answer = libc.syscall(
        ctypes.c_long(architecture.seccomp),
        ctypes.c_ulong(_SET_FILTER),
        ctypes.c_ulong(_ALL_THREADS),
        ctypes.byref(loaded),
    )
    return bool(answer == 0)
