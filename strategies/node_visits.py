"""A coordinator's side of the visits: ask each hospital, wait for its operator, close, collect receipts and logs."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from strategies.known_heads import KnownHeads
from vht_federate.client import Client, Prove, ask_each
from vht_federate.domain.study import NodeRef
from vht_federate.errors import (
    InputError,
    RefusedError,
    RevokedError,
    UnavailableError,
    VhtError,
    WireError,
    error_from_envelope,
)
from vht_federate.files import replace_file
from vht_federate.signing.keys import SigningKey
from vht_federate.signing.possession import prove

__all__ = ["Visit", "Visits"]

READY = "ready"
ENDED = frozenset({"closed", "rejected", "halted", "revoked", "failed"})
POLL_S = 0.5
JUDGE_S = 120.0  # a hospital prices the whole plan before it answers, and may be busy


class Visit(BaseModel):
    """One hospital's visit. ``token`` is a secret between this coordinator and that hospital."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str
    url: str
    visit: str
    token: str
    evidence_key: dict[str, str]  # JWK, as the node told it over TLS; an auditor brings their own
    recipient: str = ""  # the node's dataset, which proofs are made for; "": a visit that was asked for without any


_FILE = TypeAdapter(dict[str, Visit])


@dataclass(frozen=True)
class Visits:
    """All visits of one run, kept in ``visits.json`` (mode 0600). Every request proves to hold ``key``.

    ``heads``: what is known of the hospitals' logs, told to each and learnt from each.
    """

    ca: Path
    by_node: dict[str, Visit]
    heads: KnownHeads
    key: SigningKey | None = None

    def request(self, nodes: Sequence[NodeRef], body: Mapping[str, Any], folder: Path) -> dict[str, VhtError]:
        """Ask every node for a visit, noting each in ``folder`` at once; the refusals by node.

        A node that is at work on other requests is asked again when it says, for a few minutes.
        """
        by_name = {node.name: node for node in nodes}
        return ask_each(by_name, lambda name: self._request(by_name[name], body, folder))

    def _request(self, node: NodeRef, body: Mapping[str, Any], folder: Path) -> None:
        with Client(node.url, self.ca, timeout_s=JUDGE_S, prove=self._prover(node.dataset)) as client:
            identity = _members(node.name, client.get("/identity"), "evidence_key")
            shown = self.heads.headers(identity["evidence_key"])
            answer = _members(node.name, client.post("/visits", json=dict(body), headers=shown), "visit", "token")
        try:
            self.by_node[node.name] = Visit(
                node=node.name,
                url=node.url,
                visit=answer["visit"],
                token=answer["token"],
                evidence_key=identity["evidence_key"],
                recipient=node.dataset,
            )
        except ValidationError as error:
            raise WireError(f"{node.name} answered with no visit", code="VHT-WIRE-VISIT") from error
        self.write(folder)

    @classmethod
    def read(cls, folder: Path, ca: Path, heads: KnownHeads, key: SigningKey | None = None) -> "Visits":
        """Raises InputError VHT-INPUT-RUN."""
        try:
            return cls(ca, _FILE.validate_json((folder / "visits.json").read_bytes()), heads, key)
        except (OSError, ValidationError) as error:
            raise InputError(f"{folder} holds no visits to go on with", code="VHT-INPUT-RUN") from error

    def write(self, folder: Path) -> None:
        content = json.dumps({name: visit.model_dump() for name, visit in self.by_node.items()}, indent=2)
        replace_file(folder / "visits.json", content.encode())

    def _client(self, node: str) -> Client:
        visit = self.by_node[node]
        return Client(visit.url, self.ca, token=visit.token, prove=self._prover(visit.recipient, visit.token))

    def _prover(self, recipient: str, token: str | None = None) -> Prove | None:
        key = self.key
        if key is None or not recipient:
            return None
        return lambda method, url: prove(key, method, url, recipient=recipient, now=datetime.now(UTC), token=token)

    def _path(self, node: str, rest: str = "") -> str:
        return f"/visits/{self.by_node[node].visit}{rest}"

    def state(self, node: str) -> dict[str, Any]:
        """``{"state", "reason", "code", …}`` of one visit. Raises the node's error or UnavailableError."""
        with self._client(node) as client:
            return _members(node, client.get(self._path(node)), "state")

    def refusal(self, node: str) -> VhtError | None:
        """Why the node ended its visit, in its own words; None where it did not, or does not answer."""
        if node not in self.by_node:
            return None
        try:
            answer = self.state(node)
        except VhtError:
            return None
        return _ended(node, answer) if answer.get("state") in ENDED - {"closed"} else None

    def await_ready(
        self, deadline_s: float, changed: Callable[[str, str], None], enough: Callable[[int], bool] = lambda _: False
    ) -> dict[str, VhtError]:
        """Wait until every visit is ready, ended, or the deadline passed; the reason of each that is not ready.

        A node that answers with an error other than UnavailableError is not waited for any longer.
        ``changed(node, state)`` is told of every change; ``enough(ready)`` may end the waiting early. Every node is
        asked over one connection, which is made anew where it was lost.
        """
        with ExitStack() as open_:
            clients = {node: open_.enter_context(self._client(node)) for node in self.by_node}
            return self._await_ready(clients, deadline_s, changed, enough)

    def _await_ready(
        self,
        clients: Mapping[str, Client],
        deadline_s: float,
        changed: Callable[[str, str], None],
        enough: Callable[[int], bool],
    ) -> dict[str, VhtError]:
        states: dict[str, str] = dict.fromkeys(self.by_node, "requested")
        failures: dict[str, VhtError] = {}
        end = time.monotonic() + deadline_s
        while True:
            for node in self.by_node:
                if states[node] == READY or node in failures:
                    continue
                try:
                    answer = _members(node, clients[node].get(self._path(node)), "state")
                except UnavailableError:
                    continue  # it may come back before the deadline
                except VhtError as error:
                    failures[node] = error
                    continue
                if answer["state"] != states[node]:
                    states[node] = answer["state"]
                    changed(node, states[node])
                if states[node] in ENDED:
                    failures[node] = _ended(node, answer)
            open_ = [node for node, state in states.items() if state != READY and node not in failures]
            ready = sum(1 for state in states.values() if state == READY)
            if not open_ or enough(ready) or time.monotonic() >= end:
                break
            time.sleep(POLL_S)
        for node in open_:
            failures[node] = UnavailableError(
                f"{node} did not open its visit within {deadline_s:g} s", code="VHT-UNAVAILABLE-APPROVAL"
            )
        return failures

    def acknowledge(self, node: str, kind: str, sha256: str) -> str:
        """The node's signed receipt that it knows of a release made from its contribution."""
        with self._client(node) as client:
            notice = {"kind": kind, "sha256": sha256}
            answer = client.post(self._path(node, "/releases"), json=notice, headers=self._shown(node))
        return self._noted(node, str(_members(node, answer, "receipt")["receipt"]))

    def close(self, node: str, reason: str) -> str | None:
        """Close one visit; its receipt, or None where it was closed before or the node does not answer."""
        try:
            with self._client(node) as client:
                closed = client.post(self._path(node, "/close"), json={"reason": reason}, headers=self._shown(node))
            answer = _members(node, closed)
        except VhtError:
            return None
        receipt = str(answer.get("receipt") or "")
        return self._noted(node, receipt) if receipt else None

    def evidence(self, node: str) -> dict[str, Any]:
        """The node's log under this permit. Raises the node's error or UnavailableError."""
        with self._client(node) as client:
            answer = client.get(self._path(node, "/evidence"), headers=self._shown(node))
        export = _members(node, answer, "entries")
        self._noted(node, str(export.get("head")))
        return export

    def _shown(self, node: str) -> dict[str, str]:
        return self.heads.headers(self.by_node[node].evidence_key)

    def _noted(self, node: str, token: str) -> str:
        self.heads.note(self.by_node[node].evidence_key, token)
        return token


def _members(node: str, answer: Any, *names: str) -> dict[str, Any]:
    """Raises WireError VHT-WIRE-VISIT for anything but an object that has ``names``."""
    if not isinstance(answer, dict) or not answer.keys() >= set(names):
        raise WireError(f"{node} answered with nothing that is about its visit", code="VHT-WIRE-VISIT")
    return answer


def _ended(node: str, answer: Mapping[str, Any]) -> VhtError:
    code, reason = answer.get("code") or "", answer.get("reason") or f"its visit is {answer['state']}"
    if answer["state"] == "revoked":
        return RevokedError(f"{node}: {reason}", code=code or "VHT-PERMIT-REVOKED")
    if code:
        return error_from_envelope({"code": code, "message": f"{node}: {reason}"})
    return RefusedError(f"{node}: {reason}", code="VHT-REFUSED-VISIT")
