"""The coordinator's machine has other users: none of them is the coordinator, and no FAB's code runs on it."""

import contextlib
import errno
import os
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from kit.hostile_table import Answered
from kit.second_user import as_nobody, needs_a_second_user
from kit.small_federation import wait_until

from deploy.pki import issue_certificate, make_authority
from strategies.coordinator import Coordinator
from strategies.runtime_tasks import RuntimeApi, next_tasks
from strategies.server_executor import play_run, start_server_app
from strategies.study_run import FLOWER_APP
from strategies.superlink import Control, SuperLinkPaths, flower_environment, superlink_command
from strategies.superlink_process import main as serve_superlink
from strategies.superlink_socket import LONGEST_ADDRESS, answers_at, listen, socket_address
from vht_federate.errors import UnavailableError
from vht_federate.processes import stop_tree
from vht_federate.tcp_ports import free_port

PATHS = ("/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task", "/docs")


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter: nothing above the coordinator's own state keeps anybody out."""
    with tempfile.TemporaryDirectory(prefix="vht-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def coordinator(open_folder: Path) -> Iterator[Coordinator]:
    now, pki = datetime.now(UTC), open_folder / "pki"
    make_authority(pki, now=now)
    tls = issue_certificate(pki, "coordinator", pki / "coordinator", now=now)
    made = Coordinator.init(
        open_folder / "coordinator", host="127.0.0.1", port=0, certificate=tls.certificate, key=tls.key, ca=tls.ca
    )
    command = [sys.executable, "-m", "vht_federate", "coordinator", "serve", str(made.state)]
    with (open_folder / "serve.log").open("wb") as log:
        service = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: made.control.answers() and _listening(made), "the coordinator serving")
        yield made
    finally:
        stop_tree(service.pid, patience_s=15)
        service.wait()


def _family(coordinator: Coordinator) -> list[psutil.Process]:
    pid = coordinator.pid_file.running()
    assert pid is not None
    service = psutil.Process(pid)
    return [service, *service.children(recursive=True)]


def _listening(coordinator: Coordinator) -> set[int]:
    """TCP ports that the coordinator and all its processes listen on."""
    ports = set()
    for process in _family(coordinator):
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = process.net_connections(kind="inet")
            ports |= {line.laddr.port for line in connections if line.status == psutil.CONN_LISTEN}
    return ports


def hostile_app(folder: Path, marker: Path) -> Path:
    """A Flower app as ours, whose ServerApp leaves a mark where it runs: as whom, and how it was started."""
    folder.mkdir()
    for name in ("pyproject.toml", "LICENSE.md", "__init__.py", "study_client.py"):
        (folder / name).write_text((FLOWER_APP / name).read_text())
    (folder / "study_server.py").write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from flwr.serverapp import ServerApp\n"
        f"Path({str(marker)!r}).write_text(f\"{{os.getuid()}} {{Path('/proc/self/cmdline').read_text()}}\")\n"
        "app = ServerApp()\n"
        "@app.main()\n"
        "def main(grid, context):\n"
        "    pass\n"
    )
    return folder


# --- who reaches the SuperLink ---------------------------------------------------------------------------------------


def test_the_coordinator_listens_on_its_gateway_alone_and_its_socket_is_its_users(coordinator: Coordinator) -> None:
    assert len(_family(coordinator)) >= 3
    assert _listening(coordinator) == {coordinator.config.port}
    about = coordinator.superlink.socket.stat()
    assert stat.S_ISSOCK(about.st_mode)
    assert (stat.S_IMODE(about.st_mode), about.st_uid) == (0o600, os.geteuid())
    for folder in (coordinator.state, coordinator.superlink.home):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_gateway_shows_nobody_the_control_or_runtime_api(coordinator: Coordinator) -> None:
    trusted = ssl.create_default_context(cafile=str(coordinator.config.ca))
    with httpx.Client(base_url=f"https://{coordinator.address}", verify=trusted, trust_env=False) as client:
        headers = {"content-type": "application/protobuf"}
        assert {client.post(path, headers=headers).status_code for path in PATHS} == {404}


@pytest.mark.hostile("other-user")
@needs_a_second_user
def test_another_user_of_the_machine_cannot_act_as_the_coordinator(
    coordinator: Coordinator, open_folder: Path, answered: Answered
) -> None:
    paths, control = coordinator.superlink, coordinator.control
    assert as_nobody((open_folder / "pki" / "ca.crt").read_bytes) == coordinator.config.ca.read_bytes()
    assert as_nobody(lambda: answers_at(paths.socket)) is False
    refused = as_nobody(control.nodes)
    assert isinstance(refused, UnavailableError)
    for path in (paths.socket, paths.secret, coordinator.state / "coordinator.key", paths.database):
        assert isinstance(as_nobody(path.read_bytes), PermissionError)
    answered(f"{refused.code} at the socket, EACCES at files")


@pytest.mark.hostile("other-user", control=True)
@needs_a_second_user
def test_with_the_sockets_permissions_taken_away_another_user_can(coordinator: Coordinator) -> None:
    """The control: what keeps them out is who may open the socket."""
    paths = coordinator.superlink
    opened = {coordinator.state: 0o755, paths.home: 0o755, paths.socket: 0o666}
    before = {path: stat.S_IMODE(path.stat().st_mode) for path in opened}
    try:
        for path, mode in opened.items():
            path.chmod(mode)
        assert as_nobody(coordinator.control.nodes) == coordinator.control.nodes()
        assert isinstance(as_nobody(lambda: coordinator.control.start_run(FLOWER_APP, {"run-directory": "/"})), int)
    finally:
        for path, mode in before.items():
            path.chmod(mode)
    assert as_nobody(lambda: answers_at(paths.socket)) is False


# --- whose code runs -------------------------------------------------------------------------------------------------


@pytest.mark.hostile("fab")
def test_the_installed_server_app_plays_a_run_whatever_its_fab_holds(
    coordinator: Coordinator, tmp_path: Path, answered: Answered
) -> None:
    marker = tmp_path / "marker"
    app = hostile_app(tmp_path / "app", marker)
    run = coordinator.control.start_run(app, {"run-directory": str(tmp_path / "no-run")})
    wait_until(lambda: coordinator.control.run_status(run)[0].startswith("finished"), "the run's end")
    ended = coordinator.control.run_status(run)
    assert ended == ("finished:failed", "the ServerApp failed (InputError)")  # ours, which missed dispatch.json
    assert not marker.exists()
    answered(f"{ended[1]}: ours ran")
    assert not list(coordinator.superlink.home.rglob("study_server.py")), "the FAB was not even unpacked"


@pytest.mark.hostile("token", control=True)
@pytest.mark.hostile("fab", control=True)
@pytest.mark.slow("Flower's own SuperLink and executor start first")
def test_flowers_own_executor_runs_it_for_anybody_and_shows_the_runs_token(open_folder: Path) -> None:
    """The control: a SuperLink on loopback with Flower's executor, and whoever is there asks for the run."""
    marker, port = open_folder / "marker", free_port()
    app = hostile_app(open_folder / "app", marker)
    home = open_folder / "stock"
    home.mkdir()
    command = [
        str(Path(sys.executable).parent / "flower-superlink"),
        *("--insecure", "--host", "127.0.0.1", "--port", str(port), "--isolation", "subprocess"),
        *("--database", str(home / "state.db"), "--disable-runtime-dependency-installation"),
    ]
    with (home / "log").open("wb") as log:
        superlink = subprocess.Popen(command, env=flower_environment(home), stdout=log, stderr=subprocess.STDOUT)

    class OnLoopback(Control):
        @contextlib.contextmanager
        def _client(self) -> Iterator[ControlHttpClient]:
            with ControlHttpClient.from_server_address(f"127.0.0.1:{port}", True, None, interceptors=[]) as client:
                yield client

    control = OnLoopback(home)
    try:
        wait_until(control.answers, "Flower's SuperLink answering")
        ask = lambda: control.start_run(app, {"run-directory": ""})  # noqa: E731
        assert isinstance(as_nobody(ask) if os.geteuid() == 0 else ask(), int)
        wait_until(marker.exists, "the app's code running")
    finally:
        stop_tree(superlink.pid)
        superlink.wait()
    user, _, started_as = marker.read_text().partition(" ")
    assert int(user) == os.geteuid()
    assert "--token" in started_as.split("\0")


@pytest.mark.hostile("token")
def test_a_runs_token_stands_in_no_command_line_and_no_environment(tmp_path: Path, answered: Answered) -> None:
    token = "f00dfeedf00dfeedf00dfeed"
    process = start_server_app(SuperLinkPaths(tmp_path), token)
    try:
        shown = psutil.Process(process.pid)
        wait_until(lambda: any("server_process" in part for part in shown.cmdline()), "the process starting")
        assert token not in " ".join(shown.cmdline())
        assert token not in " ".join(shown.environ().values())
        answered("it is in no command line, no environment")
    finally:
        process.kill()
        process.wait()


def test_a_run_that_cannot_be_started_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has no room for a process, or the process is gone before it read its token."""
    paths, start = SuperLinkPaths(tmp_path), subprocess.Popen
    paths.secret.write_bytes(os.urandom(32))
    started: list[subprocess.Popen[bytes]] = []

    def no_room(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    def deaf(*_: object, **__: object) -> "subprocess.Popen[bytes]":
        process = start([sys.executable, "-c", "import time; time.sleep(3600)"])
        reader, writer = os.pipe()
        os.close(reader)
        process.stdin = os.fdopen(writer, "wb")
        started.append(process)
        return process

    with (tmp_path / "superlink.log").open("wb") as log:
        environment = flower_environment(tmp_path)
        superlink = start(superlink_command(paths), env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        control, api = Control(paths.socket), RuntimeApi(socket=paths.socket)
        wait_until(control.answers, "the SuperLink answering")
        for popen, error in ((no_room, "BlockingIOError"), (deaf, "BrokenPipeError")):
            run = control.start_run(FLOWER_APP, {"run-directory": ""})
            tasks = next_tasks(api, paths.secret.read_bytes(), TaskType.SERVER_APP, poll_s=0.05)
            with contextlib.closing(tasks):  # type: ignore[type-var]
                token = next(tasks)
            with monkeypatch.context() as patch:
                patch.setattr(subprocess, "Popen", popen)
                play_run(api, paths, token)
            assert control.run_status(run) == ("finished:failed", f"the ServerApp could not be started ({error})")
        assert [process.poll() for process in started] == [-signal.SIGKILL]
    finally:
        stop_tree(superlink.pid)
        superlink.wait()
    with monkeypatch.context() as patch:  # nor does it matter that nobody can be told
        patch.setattr(subprocess, "Popen", no_room)
        patch.setattr("strategies.runtime_tasks.RETRY_S", 0.1)
        play_run(RuntimeApi(f"127.0.0.1:{free_port()}"), paths, token)


# --- the socket ------------------------------------------------------------------------------------------------------


def test_a_second_superlink_in_the_same_directory_is_refused_and_the_first_stays(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strategies.superlink_process.PREDECESSOR_S", 0.0)
    with pytest.raises(UnavailableError) as caught:
        serve_superlink([str(coordinator.superlink.home)])
    assert caught.value.code == "VHT-UNAVAILABLE-RUNNING"
    assert coordinator.control.answers()


def test_a_socket_whose_path_is_too_long_for_an_address_is_reached_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40) / "flower"
    folder.mkdir(parents=True)
    path = folder / "superlink.sock"
    assert len(str(path)) > 108 > LONGEST_ADDRESS >= len(socket_address(path))
    assert not answers_at(path)
    with listen(path) as listener:
        assert path.is_socket()
        assert answers_at(path)
        listener.accept()[0].close()
    assert not answers_at(path)
