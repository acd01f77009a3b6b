"""A coordinator's state directory, and its one foreground service: gateway, SuperLink and SuperExec.

coordinator.toml   addresses and certificates        coordinator.key     signs packages and evidence
nodes.json         name -> SuperNode id and key      flower/             Flower's own state
serve.pid          of the running service            messages, replies   touched when something waits
"""

import asyncio
import contextlib
import json
import os
import secrets
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from strategies.file_notification import FileNotification
from strategies.superlink import Control, SuperLinkPaths, flower_environment, superexec_command, superlink_command
from strategies.supervised_processes import Child, supervise
from vht_federate.errors import InputError, UnavailableError
from vht_federate.files import READABLE, create_private, replace_file
from vht_federate.processes import PidFile, stop_process
from vht_federate.serving import Listener, require_free, serve
from vht_federate.signing.keys import SigningKey
from vht_federate.tcp_ports import LOOPBACK, free_ports

__all__ = ["Coordinator", "CoordinatorConfig", "Enrolment"]


class CoordinatorConfig(BaseModel):
    """One coordinator. Paths are absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: str = "1"
    host: str
    port: int  # gateway: what hospitals connect to
    superlink_port: int  # loopback only
    certificate: Path
    key: Path
    ca: Path


class Enrolment(BaseModel):
    """A hospital's SuperNode as the SuperLink knows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node_id: int
    supernode_key: str


@dataclass(frozen=True)
class Coordinator:
    """One coordinator's state directory."""

    state: Path
    config: CoordinatorConfig

    @classmethod
    def init(
        cls, state: Path, *, host: str, port: int, certificate: Path, key: Path, ca: Path, superlink_port: int = 0
    ) -> "Coordinator":
        """Write configuration, evidence key and secret; a port of 0 is chosen.

        Raises InputError VHT-INPUT-EXISTS, VHT-INPUT-FILE.
        """
        if (state / "coordinator.toml").exists():
            raise InputError(f"{state} already holds a coordinator", code="VHT-INPUT-EXISTS")
        for file in (certificate, key, ca):
            if not file.is_file():
                raise InputError(f"there is no file {file}", code="VHT-INPUT-FILE", hint="see 'vht pki'")
        home = state / "flower"
        home.mkdir(parents=True, exist_ok=True)
        state.chmod(0o700)
        given = ((host, port), (LOOPBACK, superlink_port))
        drawn = iter(free_ports(*[name for name, named in given if not named], besides=(port, superlink_port)))
        config = CoordinatorConfig(
            host=host,
            port=port or next(drawn),
            superlink_port=superlink_port or next(drawn),
            certificate=certificate.resolve(),
            key=key.resolve(),
            ca=ca.resolve(),
        )
        SigningKey.create(state / "coordinator.key")
        create_private(home / "superexec.secret", secrets.token_hex(32).encode())
        (state / "coordinator.toml").write_text(tomli_w.dumps(config.model_dump(mode="json")))
        return cls(state, config)

    @classmethod
    def open(cls, state: Path) -> "Coordinator":
        """Raises InputError VHT-INPUT-STATE."""
        try:
            return cls(state, CoordinatorConfig.model_validate(tomllib.loads((state / "coordinator.toml").read_text())))
        except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
            raise InputError(
                f"{state} holds no coordinator", code="VHT-INPUT-STATE", hint="vht coordinator init STATE …"
            ) from error

    @property
    def superlink(self) -> SuperLinkPaths:
        config = self.config
        home = (self.state / "flower").resolve()
        return SuperLinkPaths(config.superlink_port, config.certificate, config.key, config.ca, home)

    @property
    def control(self) -> Control:
        return Control(self.superlink.address, self.config.ca)

    @property
    def message_notification(self) -> FileNotification:
        return FileNotification((self.state / "messages").resolve())

    @property
    def replies(self) -> FileNotification:
        return FileNotification((self.state / "replies").resolve())

    @property
    def address(self) -> str:
        """host:port that hospitals give their SuperNode."""
        return f"{self.config.host}:{self.config.port}"

    @property
    def pid_file(self) -> PidFile:
        return PidFile(self.state / "serve.pid")

    def signing_key(self) -> SigningKey:
        return SigningKey.read(self.state / "coordinator.key")

    def enrolments(self) -> dict[str, Enrolment]:
        path = self.state / "nodes.json"
        if not path.exists():
            return {}
        return {name: Enrolment.model_validate(entry) for name, entry in json.loads(path.read_text()).items()}

    def enrol(self, name: str, supernode_key: str) -> Enrolment:
        """Register a SuperNode's key under ``name``; the same name and key again changes nothing.

        Raises InputError VHT-INPUT-ENROLLED where the name belongs to another key, UnavailableError.
        """
        enrolments, key = self.enrolments(), " ".join(supernode_key.split()[:2])
        if name in enrolments:
            if enrolments[name].supernode_key == key:
                return enrolments[name]
            raise InputError(f"{name} is enrolled with another key", code="VHT-INPUT-ENROLLED")
        enrolment = Enrolment(node_id=self.control.register(key), supernode_key=key)
        enrolments[name] = enrolment
        content = json.dumps({node_name: entry.model_dump() for node_name, entry in enrolments.items()}, indent=2)
        replace_file(self.state / "nodes.json", content.encode(), mode=READABLE)
        return enrolment

    def children(self) -> list[Child]:
        """The SuperLink, and its SuperExec once it answers."""
        paths, logs = self.superlink, self.state / "logs"
        logs.mkdir(exist_ok=True)
        environment = flower_environment(paths.home)
        return [
            Child("superlink", lambda: superlink_command(paths), environment, logs / "superlink.log"),
            Child("superexec", lambda: superexec_command(paths, os.getpid()), environment, logs / "superexec.log"),
        ]

    def serve(self, on_ready: Callable[[], None]) -> None:
        """Serve in the foreground until SIGINT or SIGTERM; everything started is stopped. ``on_ready`` runs once.

        Raises UnavailableError VHT-UNAVAILABLE-PORT where another process holds a port.
        """
        with self.pid_file:
            require_free(self.config.superlink_port)
            asyncio.run(self._serve(on_ready))

    async def _serve(self, on_ready: Callable[[], None]) -> None:
        from strategies.gateway import make_gateway

        config = self.config
        identity = {"name": "coordinator", "evidence_key": self.signing_key().public.jwk()}
        app = make_gateway(
            f"https://{self.superlink.address}", config.ca, self.message_notification, self.replies, identity
        )
        listener = Listener(app, config.host, config.port, config.certificate, config.key)
        watch = asyncio.create_task(supervise(self.children()))
        announce = asyncio.create_task(self._announce(on_ready))
        try:
            await serve([listener])
        finally:
            for task in (announce, watch):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _announce(self, on_ready: Callable[[], None]) -> None:
        while not await asyncio.to_thread(self.control.answers):
            await asyncio.sleep(0.3)
        on_ready()

    def stop(self) -> int | None:
        """Stop the running service by its pid; the pid, or None where none ran."""
        pid = self.pid_file.running()
        if pid is not None:
            stop_process(pid, patience_s=20.0)
        return pid

    def require_running(self) -> None:
        """Raises UnavailableError VHT-UNAVAILABLE-COORDINATOR."""
        if self.pid_file.running() is None:
            raise UnavailableError(
                "the coordinator of this study is not running",
                code="VHT-UNAVAILABLE-COORDINATOR",
                hint=f"start it: vht coordinator serve {self.state}",
            )
