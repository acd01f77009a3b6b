"""The services of a federation on one machine: provisioned, started, and where each of them is.

Built from the public commands and HTTP APIs only, so that everything here can be done by hand (docs/guides/by-hand.md).
"""

import json
import secrets
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from deploy.commands import Commands, Service, wait_until
from deploy.study_terms import Hospital, StudyTerms
from vht_federate.client import Client
from vht_federate.domain.isolation import IsolationLevel
from vht_federate.errors import VhtError
from vht_federate.files import create_private
from vht_federate.output import progress
from vht_federate.tcp_ports import LOOPBACK, free_ports
from vht_federate.text import counted

__all__ = ["Direct", "LocalServices", "Routes"]

SIGNAL_S = 0.5  # a signal waits for as long at most


class Routes(Protocol):
    """Where a connection goes: the hook by which a test puts a proxy between a hospital and the world."""

    def route(self, name: str, port: int) -> int:
        """The loopback port through which clients reach ``port`` of the service ``name``."""


class Direct:
    """No proxy."""

    def route(self, name: str, port: int) -> int:  # noqa: ARG002 - the interface names the service
        return port


@dataclass
class LocalServices:
    """The services of ``hospitals`` and of the centre under ``root``; ``terms`` say what a node may spend."""

    root: Path
    hospitals: list[Hospital]
    terms: StudyTerms
    commands: Commands
    routes: Routes = field(default_factory=Direct)
    services: dict[str, Service] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    isolation: dict[str, Any] = field(default_factory=dict)  # what this machine gives an enclave; once started

    # ---- places ----------------------------------------------------------------------------------------------

    @property
    def ca(self) -> Path:
        return self.root / "pki" / "ca.crt"

    @property
    def issuer_key(self) -> Path:
        return self.root / "authority" / "issuer.pub.json"

    @property
    def trust(self) -> Path:
        return self.root / "trust.json"

    @property
    def study_file(self) -> Path:
        return self.root / "study" / "study.toml"

    def node_state(self, name: str) -> Path:
        return self.root / "nodes" / name

    def url(self, name: str) -> str:
        return f"https://{LOOPBACK}:{self.ports[name]}"

    def operator_token(self, name: str) -> str:
        return (self.node_state(name) / "operator.token").read_text().strip()

    # ---- building --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Provision and start everything, ingest each hospital's data, and wait until all SuperNodes are online."""
        for folder in ("pki", "nodes", "logs", "study"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self._ask_isolation()
        self._provision()
        progress("starting the permit issuer and the coordinator")
        self._serve("authority", "permit", "serve", "--state", str(self.root / "authority"))
        self._serve("coordinator", "coordinator", "serve", str(self.root / "coordinator"))
        self._initialise_nodes()
        self._ingest()
        self._await_health("authority")
        self._await_coordinator()
        self._enrol()
        progress(f"starting {counted(len(self.hospitals), 'hospital')} and the platform")
        for hospital in self.hospitals:
            self._serve(hospital.name, "node", "serve", str(self.node_state(hospital.name)))
        self._start_platform()
        for name in (*[hospital.name for hospital in self.hospitals], "platform"):
            self._await_health(name)

    def _run_all(self, calls: Sequence[tuple[str, ...]]) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(max_workers=2) as pool:
            try:
                running = [pool.submit(self.commands.run, *call) for call in calls]
                pending = set(running)
                while pending:  # a signal that comes just before a wait is seen only after it: no wait is long
                    ended, pending = wait(pending, timeout=SIGNAL_S, return_when=FIRST_EXCEPTION)
                    for future in ended:
                        future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.commands.close()  # leaving the pool waits for what runs: nobody waits after Ctrl-C or a failure
                raise
            return [future.result() for future in running]

    def _ask_isolation(self) -> None:
        """A machine that gives less than a sandbox is said so, and its hospitals require no more than it gives."""
        self.isolation = self.commands.run("node", "isolation")
        if self.isolation["missing"]:
            progress(f"[yellow]enclaves on this machine are no sandbox: {self.isolation['level']} is all it gives[/]")
            for missing in self.isolation["missing"]:
                progress(f"[yellow]  it has {missing}[/]")

    def _provision(self) -> None:
        progress("making certificates and keys")
        pki, names = self.root / "pki", ["authority", "coordinator", "platform", *[h.name for h in self.hospitals]]
        self.commands.run("pki", "ca", "--out", str(pki))
        self._run_all([("pki", "cert", "--ca", str(pki), "--name", name, "--out", str(pki / name)) for name in names])
        self._draw_ports(names)
        tls = {name: self._tls(name) for name in names}
        authority, coordinator = str(self.root / "authority"), str(self.root / "coordinator")
        self._run_all(
            [
                ("permit", "init", "--state", authority, *tls["authority"], "--port", str(self.ports["authority"])),
                (
                    "coordinator", "init", coordinator, *tls["coordinator"],
                    "--ca", str(self.ca), "--port", str(self.ports["coordinator"]),
                ),
                ("permit", "keygen", str(self.root / "study"), "--name", "user"),
            ]
        )  # fmt: skip

    def _draw_ports(self, names: Sequence[str]) -> None:
        """All at once, so that no two are the same. ``flower`` is what Flower's own processes bind."""
        port_names = [*names]
        port_names += [f"{hospital.name}/{kind}" for hospital in self.hospitals for kind in ("internal", "flower")]
        self.ports.update(zip(port_names, free_ports(*[LOOPBACK] * len(port_names)), strict=True))

    def _tls(self, name: str) -> tuple[str, ...]:
        folder = self.root / "pki" / name
        return "--certificate", str(folder / f"{name}.crt"), "--key", str(folder / f"{name}.key")

    def _initialise_nodes(self) -> None:
        terms, isolation = self.terms, self.isolation.get("level", IsolationLevel.SANDBOX)
        issuer = self.routes.route("authority", self.ports["authority"])
        fleet = self.routes.route("coordinator", self.ports["coordinator"])
        self._run_all(
            [
                (
                    "node", "init", str(self.node_state(h.name)), "--name", h.name, *self._tls(h.name),
                    "--ca", str(self.ca), "--issuer-key", str(self.issuer_key),
                    "--issuer-url", f"https://{LOOPBACK}:{issuer}", "--dataset", h.dataset,
                    "--categories", "51.1.a", "--epsilon-cap", str(terms.epsilon_cap), "--delta", str(terms.delta),
                    "--coordinator", f"{LOOPBACK}:{fleet}", "--coordinator-ca", str(self.ca),
                    "--port", str(self.ports[h.name]), "--internal-port", str(self.ports[f"{h.name}/internal"]),
                    "--supernode-port", str(self.ports[f"{h.name}/flower"]),
                    "--enclave-isolation", isolation,
                )
                for h in self.hospitals
            ]
        )  # fmt: skip
        self._run_all([self._operator_account(h.name) for h in self.hospitals])

    def _operator_account(self, name: str) -> tuple[str, ...]:
        """The call that lets ``operator-NAME`` decide. The password is drawn: who reads its file may log in."""
        password = self.root / "nodes" / f"{name}.password"
        password.parent.mkdir(parents=True, exist_ok=True)
        create_private(password, secrets.token_urlsafe(24).encode())
        state = str(self.node_state(name))
        return "node", "operator", state, f"operator-{name}", "--role", "approver", "--password-file", str(password)

    def _ingest(self) -> None:
        calls = [("node", "ingest", str(self.node_state(h.name)), str(h.folder)) for h in self.hospitals]
        for hospital, report in zip(self.hospitals, self._run_all(calls), strict=True):
            progress(
                f"  {hospital.name}: {report['lines']} lines read, {report['accepted']} accepted, "
                f"{report['quarantined']} quarantined, {report['duplicate']} duplicates"
            )

    def _enrol(self) -> None:
        for h in self.hospitals:
            self.commands.run(
                "coordinator", "enrol", str(self.root / "coordinator"), "--name", h.name,
                "--supernode-key", str(self.node_state(h.name) / "supernode.pub"),
            )  # fmt: skip

    def _start_platform(self) -> None:
        keys = [part for h in self.hospitals for part in ("--node", f"{h.name}={self._evidence_key(h.name)}")]
        self.commands.run(
            "audit", "trust", "--issuer", str(self.issuer_key),
            "--coordinator", str(self.root / "coordinator" / "coordinator.pub.json"), *keys, "--out", str(self.trust),
        )  # fmt: skip
        state = str(self.root / "platform")
        self.commands.run(
            "platform", "init", state, *self._tls("platform"), "--ca", str(self.ca),
            "--trust", str(self.trust), "--port", str(self.ports["platform"]),
        )  # fmt: skip
        self._serve("platform", "platform", "serve", state)

    def _evidence_key(self, name: str) -> Path:
        return self.node_state(name) / "evidence.pub.json"

    def _serve(self, name: str, *arguments: str) -> None:
        self.services[name] = self.commands.serve(name, *arguments, log=self.root / "logs" / f"{name}.log")

    def _await_health(self, name: str) -> None:
        with Client(self.url(name), self.ca, timeout_s=5) as client:

            def healthy() -> bool:
                try:
                    return bool(client.get("/health")["status"] == "ok")
                except VhtError:
                    return False

            wait_until(healthy, self.services[name], 60)

    def _await_coordinator(self) -> None:
        state = str(self.root / "coordinator")

        def ready() -> bool:
            try:
                return bool(self.commands.run("coordinator", "status", state, "--wait", "10").get("ready"))
            except VhtError:
                return False

        wait_until(ready, self.services["coordinator"], 90)

    # ---- asking ----------------------------------------------------------------------------------------------

    def operator(self, name: str) -> Client:
        """The operator's HTTP client of one hospital's internal listener."""
        return Client(f"https://{LOOPBACK}:{self.ports[f'{name}/internal']}", self.ca, token=self.operator_token(name))

    def ledgers(self) -> dict[str, dict[str, Any]]:
        """Each hospital's own account of what was spent, from its internal API."""
        answers = {}
        for hospital in self.hospitals:
            with self.operator(hospital.name) as client:
                answers[hospital.name] = client.get("/api/status")["budget"]
        return answers

    def describe(self) -> dict[str, str]:
        """Where a person finds the pages; each console's link logs in once."""
        pages = {"platform": self.url("platform")}
        for h in self.hospitals:
            with self.operator(h.name) as client:
                pages[h.name] = client.post("/api/log-in-links", json={})["url"]
        return pages

    def save_endpoints(self) -> None:
        """Write ``endpoints.json``: ports and URLs, no secret."""
        endpoints = {name: f"https://{LOOPBACK}:{port}" for name, port in sorted(self.ports.items())}
        (self.root / "endpoints.json").write_text(json.dumps(endpoints, indent=2) + "\n")
