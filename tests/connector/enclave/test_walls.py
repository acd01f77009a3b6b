"""Native attacks on the walls of an enclave; each is refused, and each succeeds where the wall is taken down."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from kit.hostile_table import Answered
from kit.walled_process import FILES_OPEN, NOTHING_HOLDS, Surroundings, need_walls


@pytest.fixture
def place(tmp_path: Path) -> Surroundings:
    return Surroundings.make(tmp_path)


@pytest.fixture
def victim():
    """A process of the same user, which nobody outside may touch."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


# --- files: the view ----------------------------------------------------------------------------------------------

READS = {
    "open": "got = (state / 'evidence.key').read_text()",
    "libc": """
        fd = libc.open(os.fsencode(state / "evidence.key"), 0)
        buffer = ctypes.create_string_buffer(100)
        got = buffer.raw[: libc.read(fd, buffer, 100)].decode() if fd >= 0 else None
        """,
    "dot-dot": "got = open(own / '..' / '..' / 'evidence.key').read()",
    "torch": """
        import torch
        key = state / "evidence.key"
        got = bytes(torch.UntypedStorage.from_file(str(key), False, key.stat().st_size)).decode()
        """,
    "renamed": "os.rename(state / 'evidence.key', own / 'mine'); got = (own / 'mine').read_text()",
    "connector's environment": "got = [w for w in open(f'/proc/{os.getppid()}/environ').read().split('\\0')]",
    "listing": "got = sorted({*os.listdir(state)} - {'visits'}) or None",
}
WRITES = {
    "open": "(outside / 'rows').write_text('rows')",
    "torch": """
        import torch
        writer = torch._C.PyTorchFileWriter(str(outside / "rows"))
        writer.write_record("rows", b"rows", 4)
        writer.write_end_of_file()
        """,
    "sqlite": "import sqlite3; sqlite3.connect(outside / 'rows').execute('create table rows (a)')",
    "folder": "os.mkdir(outside / 'rows')",
    "moved": "(own / 'a').write_text('rows'); os.rename(own / 'a', outside / 'rows')",
}


@pytest.mark.hostile("reads")
@pytest.mark.parametrize("without", [(), ("namespaces",), ("landlock",)], ids=["all", "no-namespaces", "no-landlock"])
@pytest.mark.parametrize("attack", [name for name in READS if name != "torch"])
def test_no_native_code_reads_what_is_not_the_visits(
    place: Surroundings, attack: str, without, answered: Answered
) -> None:
    need_walls("seccomp", "landlock", "own-root" if "landlock" in without else "seccomp")
    outcome = place.act(READS[attack], without=without)
    assert outcome.got is None
    answered(outcome.refusal)
    assert outcome.walls[-1] == "audit-hook"
    assert place.key.read_text() == "the node's signing key"


@pytest.mark.hostile("reads", control=True)
@pytest.mark.parametrize("attack", READS)
def test_control_with_the_view_down_everything_is_read(place: Surroundings, attack: str) -> None:
    assert place.act(READS[attack], without=(*FILES_OPEN, "no-privileges")).got


@pytest.mark.hostile("writes")
@pytest.mark.parametrize("without", [(), ("namespaces",), ("landlock",)], ids=["all", "no-namespaces", "no-landlock"])
@pytest.mark.parametrize("attack", [name for name in WRITES if name != "torch"])
def test_no_native_code_writes_outside_the_visit(place: Surroundings, attack: str, without, answered: Answered) -> None:
    need_walls("seccomp", "landlock", "own-root" if "landlock" in without else "seccomp")
    outcome = place.act(WRITES[attack], without=without)
    assert not (place.outside / "rows").exists()
    answered(outcome.refusal)


@pytest.mark.hostile("writes", control=True)
@pytest.mark.parametrize("attack", WRITES)
def test_control_with_the_view_down_rows_lie_outside(place: Surroundings, attack: str) -> None:
    place.act(WRITES[attack], without=FILES_OPEN)
    assert (place.outside / "rows").exists()


@pytest.mark.hostile("writes")
@pytest.mark.hostile("reads")
def test_torch_reads_and_writes_nothing_outside_by_its_own_native_code(place: Surroundings) -> None:
    need_walls("seccomp", "landlock")
    assert place.act(READS["torch"]).got is None
    place.act(WRITES["torch"], without=("namespaces",))
    assert not (place.outside / "rows").exists()


@pytest.mark.parametrize("without", [(), ("namespaces",), ("landlock",)], ids=["all", "no-namespaces", "no-landlock"])
def test_what_an_enclave_needs_stays_open(place: Surroundings, without) -> None:
    need_walls("seccomp")
    act = """
        import sqlite3, threading, torch
        torch.set_num_threads(2)
        model = torch.nn.Linear(300, 1)
        steps = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(2000, 300)).square().mean().backward()
        steps.step()
        torch.save(model.state_dict(), own / "model.pt")
        database = sqlite3.connect(own / "replies.sqlite")
        database.execute("create table rounds (a)")
        database.execute("insert into rounds values (1)")
        database.commit()
        (own / "a").write_text("x")
        (own / "folder").mkdir()
        (own / "a").rename(own / "folder" / "b")
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
        Path(os.devnull).write_text("x")
        got = sorted(torch.load(own / "model.pt")) + [path.name for path in (own / "folder").iterdir()]
        """
    outcome = place.act(act, without=without)
    assert outcome.got == ["bias", "weight", "b"], outcome.said


# --- names, modes, lengths: what a view does not close, the filter does ---------------------------------------------

CHANGES = {
    "made readable for everybody": "libc.chmod(os.fsencode(state / 'evidence.key'), 0o644)",
    "shortened": "libc.truncate(os.fsencode(state / 'evidence.key'), ctypes.c_long(3))",
    "given away": "libc.chown(os.fsencode(state / 'evidence.key'), 4242, 4242)",
    "made older": "os.utime(state / 'evidence.key', (1, 1))",
}


def _facts(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_mode, status.st_size, status.st_uid, int(status.st_mtime)


@pytest.mark.hostile("names")
@pytest.mark.parametrize("attack", [name for name in CHANGES if name != "given away" or os.geteuid() == 0])
def test_no_file_is_changed_by_its_name(place: Surroundings, attack: str, answered: Answered) -> None:
    need_walls("seccomp")
    before = _facts(place.key)
    outcome = place.act(CHANGES[attack], without=("own-user", "landlock", "namespaces"))
    assert _facts(place.key) == before
    answered(outcome.refusal)


@pytest.mark.hostile("names", control=True)
@pytest.mark.parametrize("attack", [name for name in CHANGES if name != "given away"])
def test_control_with_the_filter_down_it_is(place: Surroundings, attack: str) -> None:
    before = _facts(place.key)
    place.act(CHANGES[attack], without=NOTHING_HOLDS)
    assert _facts(place.key) != before


# --- programs and processes: the filter ---------------------------------------------------------------------------

SHELL = "echo out > {outside}/marker"
PROGRAMS = {
    "_posixsubprocess.fork_exec": """
        import _posixsubprocess
        reading, writing = os.pipe()
        command = [b"/bin/sh", b"-c", SHELL]
        fds = (-1, -1, -1, -1, -1, -1, reading, writing)
        child = _posixsubprocess.fork_exec(
            command, [b"/bin/sh"], True, (writing,), None, None, *fds, False, False, -1, None, None, None, -1,
            None, True,
        )
        os.waitpid(child, 0)
        """,
    "os.execv": "os.execv('/bin/sh', [b'sh', b'-c', SHELL])",
    "libc.execv": """
        arguments = (ctypes.c_char_p * 4)(b"sh", b"-c", SHELL, None)
        libc.execv(b"/bin/sh", arguments)
        """,
    "os.posix_spawn": "os.waitpid(os.posix_spawn('/bin/sh', [b'sh', b'-c', SHELL], {}), 0)",
    "libc.system": "libc.system(SHELL)",
    "os.fork": """
        child = os.fork()
        if child == 0:
            (outside / "marker").write_text("out")
            os._exit(0)
        os.waitpid(child, 0)
        """,
}


def program(place: Surroundings, attack: str) -> str:
    shell = SHELL.format(outside=place.outside).encode()
    return f"SHELL = {shell!r}\n" + textwrap.dedent(PROGRAMS[attack])


@pytest.mark.hostile("programs")
@pytest.mark.parametrize("without", [(), FILES_OPEN], ids=["all", "filter-alone"])
@pytest.mark.parametrize("attack", PROGRAMS)
def test_no_program_starts_and_no_process_is_made(
    place: Surroundings, attack: str, without, answered: Answered
) -> None:
    need_walls("seccomp")
    outcome = place.act(program(place, attack), without=without)
    assert "seccomp" in outcome.walls
    assert not (place.outside / "marker").exists()
    answered(outcome.refusal)


@pytest.mark.hostile("programs", control=True)
@pytest.mark.parametrize("attack", PROGRAMS)
def test_control_with_the_filter_down_programs_start(place: Surroundings, attack: str) -> None:
    place.act(program(place, attack), without=NOTHING_HOLDS)
    assert (place.outside / "marker").read_text().strip() == "out"


TRACES = {
    "ptrace": "got = libc.ptrace(16, victim, None, None) == 0 or None",  # PTRACE_ATTACH
    "process_vm_readv": """
        start = int(open(f"/proc/{victim}/maps").read().split("-")[0], 16)
        buffer = ctypes.create_string_buffer(4)
        class Part(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
        mine, theirs = Part(ctypes.addressof(buffer), 4), Part(start, 4)
        read = libc.process_vm_readv(victim, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)
        got = buffer.raw.hex() if read == 4 else None
        """,
    "memory": """
        start = int(open(f"/proc/{victim}/maps").read().split("-")[0], 16)
        memory = open(f"/proc/{victim}/mem", "rb")
        memory.seek(start)
        got = memory.read(4).hex()
        """,
}
KILLS = {
    "kill": "os.kill(victim, 9)",
    "SIGIO of a pipe": """
        import fcntl
        reading, writing = os.pipe()
        fcntl.fcntl(reading, fcntl.F_SETOWN, victim)
        fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)
        os.write(writing, b"x")
        """,
}


@pytest.mark.hostile("traces")
@pytest.mark.parametrize("without", [(), ("namespaces",)], ids=["all", "no-namespaces"])
@pytest.mark.parametrize("attack", TRACES)
def test_no_other_process_is_traced_or_read(
    place: Surroundings, victim, attack: str, without, answered: Answered
) -> None:
    need_walls("seccomp", "landlock")
    outcome = place.act(TRACES[attack], without=without, victim=victim.pid)
    assert outcome.got is None
    answered(outcome.refusal)


@pytest.mark.hostile("traces", control=True)
@pytest.mark.parametrize("attack", TRACES)
def test_control_with_the_walls_down_processes_are_read(place: Surroundings, victim, attack: str) -> None:
    outcome = place.act(TRACES[attack], without=(*NOTHING_HOLDS, "no-privileges"), victim=victim.pid)
    if outcome.got is None and os.geteuid() != 0:
        pytest.skip(f"this machine closes it by itself: {outcome.said}")
    assert outcome.got


@pytest.mark.hostile("kills")
@pytest.mark.parametrize("attack", KILLS)
def test_no_other_process_is_ended(place: Surroundings, victim, attack: str, answered: Answered) -> None:
    need_walls("seccomp")
    outcome = place.act(KILLS[attack], without=FILES_OPEN, victim=victim.pid)
    assert victim.poll() is None
    answered(outcome.refusal)


@pytest.mark.hostile("kills", control=True)
@pytest.mark.parametrize("attack", KILLS)
def test_control_with_the_filter_down_processes_are_ended(place: Surroundings, victim, attack: str) -> None:
    place.act(KILLS[attack], without=NOTHING_HOLDS, victim=victim.pid)
    assert victim.wait(60) in (-signal.SIGKILL, -signal.SIGIO)
