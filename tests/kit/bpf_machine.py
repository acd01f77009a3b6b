"""Runs a classic BPF program as the kernel would on one system call: what it answers for any machine's numbering."""

from collections.abc import Sequence

from connector.enclave.syscall_filter import Instruction

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def answer_of(program: Sequence[Instruction], audit: int, number: int, *arguments: int) -> int:
    """The action for one call. Raises IndexError for a program that runs over its end."""
    values = [*arguments, *[0] * (6 - len(arguments))]
    memory = number.to_bytes(4, "little") + audit.to_bytes(4, "little") + bytes(8)
    memory += b"".join((value & (1 << 64) - 1).to_bytes(8, "little") for value in values)
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, constant = program[at]
        at += 1
        if code == 0x20:
            accumulator = int.from_bytes(memory[constant : constant + 4], "little")
        elif code == 0x54:
            accumulator &= constant
        elif code in (0x15, 0x35):
            holds = accumulator == constant if code == 0x15 else accumulator >= constant
            at += if_true if holds else if_false
        elif code == 0x06:
            return constant
        else:
            raise AssertionError(f"an instruction that the filter does not use: {code:#x}")
