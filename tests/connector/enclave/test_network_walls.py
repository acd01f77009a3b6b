"""Native attacks on an enclave's walls against the network, and on what the kernel offers besides."""

import errno
import os
import platform
import socket
from pathlib import Path

import pytest
from kit.hostile_table import Answered
from kit.other_syscalls import OTHERS
from kit.walled_process import FILES_OPEN, NOTHING_HOLDS, Surroundings, need_walls

from connector.enclave.syscall_filter import ARCHITECTURES


@pytest.fixture
def place(tmp_path: Path) -> Surroundings:
    return Surroundings.make(tmp_path)


# --- the network: the filter ----------------------------------------------------------------------------------------

TCP = """
    class Address(ctypes.Structure):
        _fields_ = [("family", ctypes.c_ushort), ("port", ctypes.c_ushort), ("host", ctypes.c_uint8 * 4),
                    ("zero", ctypes.c_char * 8)]
    swapped = (port & 0xFF) << 8 | port >> 8
    address = Address(2, swapped, (ctypes.c_uint8 * 4)(127, 0, 0, 1))
    fd = libc.socket(2, 1, 0)
    if libc.connect(fd, ctypes.byref(address), 16) == 0:
        got = libc.send(fd, b"rows", 4, 0)
    """
UNIX = """
    import socket
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(outside / "door"))
    peer.sendall(b"rows")
    got = 4
    """


def _listening(place: Surroundings, attack: str) -> socket.socket:
    if attack == "unix":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(place.outside / "door"))
        server.listen()
    else:
        server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(1.0)
    return server


@pytest.fixture
def short(tmp_path_factory) -> Surroundings:
    return Surroundings.make(Path(tmp_path_factory.mktemp("w")))


@pytest.mark.hostile("sockets")
@pytest.mark.parametrize("without", [(), FILES_OPEN], ids=["all", "filter-alone"])
@pytest.mark.parametrize("attack", ["tcp", "unix"])
def test_not_a_byte_leaves_through_a_socket(short: Surroundings, attack: str, without, answered: Answered) -> None:
    need_walls("seccomp")
    with _listening(short, attack) as server:
        port = 0 if attack == "unix" else server.getsockname()[1]
        outcome = short.act(UNIX if attack == "unix" else TCP, without=without, port=port)
        assert outcome.got is None
        answered(outcome.refusal)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.hostile("sockets", control=True)
@pytest.mark.parametrize("attack", ["tcp", "unix"])
def test_control_with_the_filter_down_rows_leave(short: Surroundings, attack: str) -> None:
    with _listening(short, attack) as server:
        port = 0 if attack == "unix" else server.getsockname()[1]
        assert short.act(UNIX if attack == "unix" else TCP, without=NOTHING_HOLDS, port=port).got == 4
        with server.accept()[0] as peer:
            assert peer.recv(10) == b"rows"


# --- what the kernel offers besides -----------------------------------------------------------------------------------

OFFERS = (
    "io_uring_setup", "bpf", "userfaultfd", "memfd_create", "keyctl", "perf_event_open", "mount", "unshare", "setns",
    "open_by_handle_at", "pidfd_open", "execveat", "clone3", "sendmsg", "recvmsg", "process_madvise", "fsopen",
    "landlock_create_ruleset", "seccomp", "symlink", "shmget",
)  # fmt: skip
ASK = """
def answered(number):
    libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    return ctypes.get_errno()
got = {{name: answered(number) for name, number in {numbers}.items()}}
"""


@pytest.mark.hostile("kernel", control=True)
@pytest.mark.hostile("kernel")
def test_the_kernel_answers_no_call_that_is_not_needed(place: Surroundings, answered: Answered) -> None:
    need_walls("seccomp")
    column = ARCHITECTURES[platform.machine()].column
    act = ASK.format(numbers={name: OTHERS[name][column] for name in OFFERS if OTHERS[name][column] is not None})
    for without in ((), ("namespaces",)):
        answers = place.act(act, without=without).got
        assert set(answers.values()) == {errno.ENOSYS}
    answered("ENOSYS")
    control = place.act(act, without=NOTHING_HOLDS).got
    assert sum(answer != errno.ENOSYS for answer in control.values()) > len(control) // 2


def test_a_service_that_runs_as_root_has_an_enclave_of_another_user_without_any_privilege(place: Surroundings) -> None:
    if os.geteuid() != 0:
        pytest.skip("this is not root")
    need_walls("own-user")
    act = "got = [os.getuid(), os.getgid(), os.getgroups(), open('/proc/self/status').read()]"
    user, group, groups, status = place.act(act).got
    assert (user, groups) == (group, [])
    assert user >= 61184
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {name: int(facts[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == dict.fromkeys(
        ("CapPrm", "CapEff", "CapInh", "CapAmb"), 0
    )
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    assert place.own.stat().st_uid == user
    without = place.act(act, without=("own-user",)).got
    assert without[0] == 0  # control: it stays root, and can still write its folder
    assert place.act("(own / 'x').write_text('y'); got = (own / 'x').read_text()", without=("own-user",)).got == "y"
