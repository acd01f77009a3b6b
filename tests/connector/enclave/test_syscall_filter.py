"""The filter of system calls, judged as the kernel judges it: for both machines, and for numberings not theirs."""

import errno
import re
from pathlib import Path

import pytest
from kit.bpf_machine import ALLOW, ERRNO, KILL, answer_of
from kit.other_syscalls import OTHERS

from connector.enclave.syscall_filter import ARCHITECTURES, filter_program
from connector.enclave.syscall_numbers import NUMBERS

OWN = 4321
MACHINES = list(ARCHITECTURES)
THREAD = 0x3D0F00  # as the C library starts a thread
NOT_THERE, REFUSED = ERRNO | errno.ENOSYS, ERRNO | errno.EPERM
HEADERS = {
    0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    1: Path("/usr/include/asm-generic/unistd.h"),  # what aarch64 has
}


def judge(machine: str, name: str, *arguments: int, devices: bool = False) -> int:
    architecture = ARCHITECTURES[machine]
    number = (NUMBERS | OTHERS)[name][architecture.column]
    assert number is not None
    return answer_of(filter_program(architecture, OWN, devices=devices), architecture.audit, number, *arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_program_fits_the_kernel_and_every_jump_stays_inside(machine: str) -> None:
    for devices in (False, True):
        program = filter_program(ARCHITECTURES[machine], OWN, devices=devices)
        assert len(program) < 4096
        for at, (code, if_true, if_false, constant) in enumerate(program):
            assert 0 <= constant < 1 << 32
            assert max(if_true, if_false) < 256
            if code in (0x15, 0x35):
                assert at + 1 + max(if_true, if_false) < len(program)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("devices", [False, True])
def test_what_an_enclave_has_no_use_for_is_not_answered(machine: str, devices: bool) -> None:
    assert not OTHERS.keys() & NUMBERS.keys()
    there = [name for name, numbers in OTHERS.items() if numbers[ARCHITECTURES[machine].column] is not None]
    assert {name: judge(machine, name, devices=devices) for name in there} == dict.fromkeys(there, NOT_THERE)


@pytest.mark.parametrize("machine", MACHINES)
def test_no_number_that_is_not_on_the_list_is_answered(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    program, listed = filter_program(architecture, OWN), {numbers[architecture.column] for numbers in NUMBERS.values()}
    for number in {*range(1000), 1 << 31, (1 << 32) - 1} - listed:
        assert answer_of(program, architecture.audit, number) == NOT_THERE


@pytest.mark.parametrize("machine", MACHINES)
def test_another_machines_numbering_ends_the_process_and_x32_is_not_answered(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    program = filter_program(architecture, OWN)
    others = {other.audit for other in ARCHITECTURES.values()} - {architecture.audit} | {0x40000003, 0}  # i386
    for audit in others:
        for number in (0, 11, 59, 221):
            assert answer_of(program, audit, number) == KILL
    if architecture.x32 is not None:
        for number in (0, 1, 59, 520, 322, 545):
            assert answer_of(program, architecture.audit, architecture.x32 | number) == NOT_THERE


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (THREAD, ALLOW),
        (THREAD | 1 << 40, ALLOW),  # the kernel reads 32 bits
        (17, REFUSED),  # fork: SIGCHLD alone
        (0x1200011, REFUSED),
        (0x4111, REFUSED),  # vfork
        (0x100, REFUSED),
        (0x10000, REFUSED),
        (0, REFUSED),
        *((THREAD | flag, REFUSED) for flag in (0x20000, 0x2000000, *(1 << bit for bit in range(26, 31)))),
    ],
)
def test_clone_makes_threads_and_nothing_else(machine: str, flags: int, answer: int) -> None:
    assert judge(machine, "clone", flags) == answer


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("kill", (OWN, 15), ALLOW),
        ("kill", (1, 9), REFUSED),
        ("kill", (-1, 9), REFUSED),
        ("kill", (0, 9), REFUSED),
        ("tgkill", (OWN, 1, 6), ALLOW),
        ("tgkill", (OWN + 1, 1, 9), REFUSED),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (OWN, 7), ALLOW),
        ("prlimit64", (1, 7), REFUSED),
        ("prctl", (15, 0), ALLOW),  # PR_SET_NAME
        ("prctl", (4, 1), REFUSED),  # PR_SET_DUMPABLE
        ("prctl", (22, 2), REFUSED),  # PR_SET_SECCOMP
        ("prctl", (0x59616D61, -1), REFUSED),  # PR_SET_PTRACER
        ("fcntl", (3, 4, 2048), ALLOW),  # F_SETFL
        ("fcntl", (3, 8, 1), REFUSED),  # F_SETOWN
        ("fcntl", (3, 10, 9), REFUSED),  # F_SETSIG
        ("fcntl", (3, 15, 0), REFUSED),  # F_SETOWN_EX
        ("ioctl", (0, 0x5401), ALLOW),  # TCGETS
        ("ioctl", (0, 0x5412), REFUSED),  # TIOCSTI
        ("ioctl", (0, 0x8901), REFUSED),  # FIOSETOWN
        ("ioctl", (0, 0xC020462A), REFUSED),  # a driver's
    ],
)
def test_arguments_decide_where_a_call_can_do_harm(machine: str, name: str, arguments, answer: int) -> None:
    assert judge(machine, name, *arguments) == answer


@pytest.mark.parametrize("machine", MACHINES)
def test_a_gpus_driver_is_spoken_to_and_still_no_signal_goes_elsewhere(machine: str) -> None:
    assert judge(machine, "ioctl", 3, 0xC020462A, devices=True) == ALLOW
    for command in (0x8901, 0x8902, 0x5452):
        assert judge(machine, "ioctl", 3, command, devices=True) == REFUSED


@pytest.mark.parametrize("column", HEADERS)
def test_numbers_are_those_of_the_kernels_headers(column: int) -> None:
    header = HEADERS[column]
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    found = dict(re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", header.read_text(), re.MULTILINE))
    found.setdefault("newfstatat", found.get("fstatat", ""))
    named = {name: numbers[column] for name, numbers in (NUMBERS | OTHERS).items() if numbers[column] is not None}
    known = {name: number for name, number in named.items() if name in found}
    assert len(known) > 0.95 * len(named)
    assert known == {name: int(found[name]) for name in known}
