"""The SuperLink and its executor as child processes, and the SuperLink's Control API as a client.

The Control API has no user authentication in the open-source build: the SuperLink listens on a Unix socket of the
coordinator's user (``superlink_socket.py``) and on nothing else. Hospitals reach it through the gateway, which knows no
path but the fleet's.
"""

import hashlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strategies.superlink_socket import HOST, answers_at, connected
from vht_federate.errors import InputError, UnavailableError, WireError

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

__all__ = ["Control", "SuperLinkPaths", "executor_command", "flower_environment", "superlink_command"]

OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "UV_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class SuperLinkPaths:
    """Where things of a SuperLink lie: all below ``home``, which is its user's alone."""

    home: Path

    @property
    def socket(self) -> Path:
        return self.home / "superlink.sock"

    @property
    def lock(self) -> Path:
        """Held by the process that serves the socket."""
        return self.home / "superlink.lock"

    @property
    def database(self) -> Path:
        return self.home / "superlink.sqlite"

    @property
    def secret(self) -> Path:
        return self.home / "superexec.secret"


def flower_environment(home: Path) -> dict[str, str]:
    """Environment of Flower's processes: no telemetry, no update check, no installs, a home of their own."""
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join([programs, os.environ.get("PATH", "")])
    return {**os.environ, **OFFLINE, "FLWR_HOME": str(home), "PATH": path}


def superlink_command(paths: SuperLinkPaths) -> list[str]:
    return [sys.executable, "-m", "strategies.superlink_process", str(paths.home)]


def executor_command(paths: SuperLinkPaths, parent_pid: int) -> list[str]:
    return [sys.executable, "-m", "strategies.server_executor", str(paths.home), "--parent-pid", str(parent_pid)]


@contextmanager
def _answering(action: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        raise WireError(
            f"the SuperLink refused to {action} (HTTP {error.response.status_code})", code="VHT-WIRE-SUPERLINK"
        ) from error
    except httpx.HTTPError as error:
        raise _no_superlink(type(error).__name__) from error


def _no_superlink(why: str) -> UnavailableError:
    return UnavailableError(
        f"the SuperLink does not answer ({why})",
        code="VHT-UNAVAILABLE-SUPERLINK",
        hint="start it: vht coordinator serve STATE",
    )


class Control:
    """The coordinator's own client of the SuperLink behind ``socket``."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    @contextmanager
    def _client(self) -> "Iterator[ControlHttpClient]":
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        if not answers_at(self.socket):
            raise _no_superlink("nothing listens at its socket, or the socket is another user's")
        client = ControlHttpClient.from_server_address(
            server_address=HOST,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
        with connected(client, self.socket):
            yield client

    def answers(self) -> bool:
        try:
            self.nodes()
        except (UnavailableError, WireError):
            return False
        return True

    def register(self, ssh_public_key: str) -> int:
        """Enrol a SuperNode by its OpenSSH public key; its node id. Raises InputError VHT-INPUT-SUPERNODE-KEY."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with self._client() as client, _answering("register this SuperNode"):
            response = client.RegisterNode(RegisterNodeRequest(public_key=_key_bytes(ssh_public_key)))
        return int(response.node_id)

    def nodes(self) -> dict[int, str]:
        """Status ("online", "offline", …) of every registered SuperNode by its node id."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._client() as client, _answering("list its nodes"):
            response = client.ListNodes(ListNodesRequest())
        return {int(node.node_id): str(node.status) for node in response.nodes_info}

    def start_run(self, app: Path, run_config: Mapping[str, str]) -> int:
        """Submit the Flower app in folder ``app``; the run's id."""
        from flwr.cli.build import build_fab_from_disk
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Flower's own use of pathspec
            content = build_fab_from_disk(app)
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(run_config)))
        with self._client() as client, _answering("start this run"):
            started = client.StartRun(request)
        if not started.HasField("run_id"):
            raise WireError("the SuperLink did not start this run", code="VHT-WIRE-SUPERLINK")
        return int(started.run_id)

    def run_status(self, run_id: int) -> tuple[str, str]:
        """(status, details): pending, starting, running, or finished:completed, finished:failed, finished:stopped."""
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._client() as client, _answering("tell about this run"):
            runs: Any = client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        if run_id not in runs:
            return "unknown", "the SuperLink does not know this run"
        status = runs[run_id].status
        return ":".join(part for part in (status.status, status.sub_status) if part), str(status.details)

    def stop_run(self, run_id: int) -> None:
        from flwr.proto.control_pb2 import StopRunRequest

        with self._client() as client, _answering("stop this run"):
            client.StopRun(StopRunRequest(run_id=run_id))


def _key_bytes(ssh_public_key: str) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    try:
        key = load_ssh_public_key(ssh_public_key.strip().encode())
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
            raise ValueError
    except ValueError as error:
        raise InputError(
            "this is not an OpenSSH public key on the curve P-384",
            code="VHT-INPUT-SUPERNODE-KEY",
            hint="a node shows its key at GET /identity and in 'vht node status'",
        ) from error
    return bytes(public_key_to_bytes(key))
