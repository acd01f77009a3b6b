"""A whole federation on one machine: issuer, hospitals, coordinator and platform, and the studies that run on it.

Built from the public commands and HTTP APIs only, so that everything here can be done by hand (docs/guides/by-hand.md).
"""

import threading
import time
import tomllib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from deploy.local_services import Direct, LocalServices, Routes
from deploy.study_terms import Hospital, StudyTerms
from vht_federate.client import Client
from vht_federate.errors import RefusedError, UnavailableError
from vht_federate.output import progress
from vht_federate.tcp_ports import LOOPBACK

__all__ = ["Direct", "Hospital", "LocalFederation", "Routes", "StudyTerms"]

NOTHING_TO_LEARN = "VHT-REFUSED-OUTCOME"
NOTHING_TO_TEST = "VHT-REFUSED-EVALUATION"  # by itself: its patients are evaluated together with those of the others
APPROVALS_S = 300.0  # from the start of a run until each hospital was asked and its operator approved
DURING_DEADLINE_S = 330.0  # for what happens beside a run to end after it


@dataclass
class LocalFederation(LocalServices):
    """``with Commands(…) as commands: LocalFederation(root, hospitals, terms, commands).start()``."""

    def issue_permit(self, name: str = "permit", **changes: Any) -> str:
        """Issue the permit of these terms into ``study/<name>.jwt``; ``changes`` override its fields. Its id."""
        terms, study = self.terms, self.root / "study"
        component = self.commands.run("component", "show", terms.component)
        profile = component["profiles"][terms.profile]
        fields = {
            "hdab": "Health Data Access Body (local)",
            "application_ref": f"application-{terms.study_id}",
            "days": terms.permit_days,
            "categories": ["51.1.a"],
            "dataset_ids": [hospital.dataset for hospital in self.hospitals],
            "columns": [*profile["inputs"], profile["outcome"]],
            "purposes": ["53.1.e.ii"],
            "purpose_text": terms.title,
            "controller": "Cardiology Research Institute",
            "component_digests": [component["digest"]],
            "epsilon": terms.epsilon,
            "delta": terms.delta,
            "minimum_nodes": terms.minimum_nodes,
            "minimum_cohort": terms.minimum_cohort,
            "data_users": [
                {"name": "Cardiology Research Institute", "kind": "academic", "key": str(study / "user.pub.json")}
            ],
            **changes,
        }
        request = study / f"{name}.toml"
        request.write_text(tomli_w.dumps(fields))
        issued = self.commands.run(
            "permit", "issue", "--state", str(self.root / "authority"),
            "--from", str(request), "--out", str(study / f"{name}.jwt"),
        )  # fmt: skip
        return str(issued["permit_id"])

    def write_study(self, name: str = "study", *, permit: str = "permit", **sections: dict[str, Any]) -> Path:
        """Write ``study/<name>.toml``; ``sections`` override fields of its sections."""
        terms = self.terms
        study: dict[str, Any] = {
            "study": {
                "id": terms.study_id,
                "title": terms.title,
                "permit": f"{permit}.jwt",
                "user_key": "user.key",
                "purpose": "53.1.e.ii",
                "categories": ["51.1.a"],
            },
            "component": {"name": terms.component, "profile": terms.profile},
            "privacy": {
                "epsilon": terms.epsilon,
                "delta": terms.delta,
                "cohort_epsilon": terms.cohort_epsilon,
                "evaluation_epsilon": terms.evaluation_epsilon,
            },
            "training": terms.training,
            "federation": {
                "coordinator": str(self.root / "coordinator"),
                "ca": str(self.ca),
                "platform": self.url("platform"),
                "issuer": self.url("authority"),
                "round_deadline_s": terms.round_deadline_s,
            },
        }
        for section, changes in sections.items():
            study[section] = {**study[section], **changes}
        study["nodes"] = [
            {
                "name": h.name,
                "url": f"https://{LOOPBACK}:{self.routes.route(h.name, self.ports[h.name])}",
                "dataset": h.dataset,
            }
            for h in self.hospitals
        ]
        path = self.root / "study" / f"{name}.toml"
        path.write_text(tomli_w.dumps(study))
        return path

    def approve_visits(self, study_id: str, *, deadline_s: float = 120.0, names: list[str] | None = None) -> list[str]:
        """Approve the requested visit of ``study_id`` at each hospital, as its operator would. Ids of those approved.

        Where nothing could be learned, the operator says no, and not why.
        """
        waiting = list(names or [hospital.name for hospital in self.hospitals])
        approved: list[str] = []
        deadline = time.monotonic() + deadline_s
        with ExitStack() as open_:
            operators = {name: open_.enter_context(self.operator(name)) for name in waiting}
            while waiting and time.monotonic() < deadline:
                for name in list(waiting):
                    visit = _requested(operators[name], study_id)
                    if visit:
                        if self._decide(name, visit):
                            approved.append(visit)
                        waiting.remove(name)
                if waiting:
                    time.sleep(0.3)
        if waiting:
            raise UnavailableError(f"no visit of {study_id} was requested at: {', '.join(waiting)}")
        return approved

    def _decide(self, name: str, visit: str) -> bool:
        state, operator = str(self.node_state(name)), f"operator-{name}"
        approve = ("node", "approve", state, visit, "--operator", operator)
        try:
            self.commands.run(*approve)
        except RefusedError as error:
            if error.code == NOTHING_TO_TEST:
                self.commands.run(*approve, "--despite-outcome")
                return True
            if error.code != NOTHING_TO_LEARN:
                raise
            progress(f"[yellow]{name}: its operator does not approve ({error.code})[/]")
            self.commands.run("node", "reject", state, visit, "--operator", operator)
            return False
        return True

    def run_study(
        self, study: Path, out: Path, *, approve: bool = True, during: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """``vht study run``, with the operators approving beside it, and then what is to happen ``during`` the run.

        Raises what kept ``during`` from happening, else what the run ended with.
        """
        failures: list[Exception] = []
        study_id = self._study_id(study)

        def operators() -> None:
            try:
                if approve:
                    self.approve_visits(study_id, deadline_s=APPROVALS_S)
                if during:
                    during()
            except Exception as error:
                failures.append(error)

        beside = threading.Thread(target=operators, daemon=True)
        beside.start()
        try:
            return self.commands.run("study", "run", str(study), "--out", str(out), stream=True)
        finally:
            beside.join(timeout=DURING_DEADLINE_S if during else 5)
            for failure in failures:
                progress(f"[yellow]operators: {failure}[/]")
            if during and beside.is_alive():
                raise UnavailableError("the run ended, and what was to happen during it had not")
            if during and failures:
                raise failures[0]

    @staticmethod
    def _study_id(study: Path) -> str:
        return str(tomllib.loads(study.read_text())["study"]["id"])


def _requested(operator: Client, study_id: str) -> str | None:
    """The visit of ``study_id`` that waits for this hospital's operator."""
    for visit in operator.get("/api/visits")["visits"]:
        if visit["study_id"] == study_id and visit["state"] == "requested":
            return str(visit["visit"])
    return None
