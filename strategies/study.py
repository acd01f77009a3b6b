"""A whole study: run it, or go on with one that was interrupted, and tell truthfully how it ended."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from strategies.known_heads import KnownHeads
from strategies.node_visits import Visits
from strategies.plan import PlannedStudy, plan_study
from strategies.release import Release, Released
from strategies.run_state import RESULT, RunState
from strategies.study_run import StudyRun
from vht_federate.domain.study import StudyFile, StudyRequest
from vht_federate.errors import InputError, RevokedError, VhtError
from vht_federate.files import READABLE, replace_file
from vht_federate.signing.keys import unverified_claims

__all__ = ["StudySession"]

STUDY_FILE = "study-file.txt"


class StudySession:
    """``vht study run`` and ``vht study resume`` in one output folder."""

    def __init__(self, planned: PlannedStudy, out: Path, clock: Callable[[], datetime], say: Callable[[str], None]):
        self.run = StudyRun(planned, out, clock, say)
        self.out, self.say = out, say
        self.visits = Visits(planned.file.federation.ca, {}, _known_heads(planned))
        self.study = Path()

    @classmethod
    def start(cls, study: Path, out: Path, clock: Callable[[], datetime], say: Callable[[str], None]) -> "StudySession":
        """Plan ``study``. Nothing was asked of anybody yet."""
        session = cls(plan_study(StudyFile.read(study), clock()), out, clock, say)
        session.study = study.resolve()
        return session

    @classmethod
    def reopen(cls, out: Path, clock: Callable[[], datetime], say: Callable[[str], None]) -> "StudySession":
        """A run that was interrupted, as it was asked for then. Raises InputError VHT-INPUT-RUN."""
        try:
            study = Path((out / STUDY_FILE).read_text().strip())
            claims = unverified_claims((out / "study.jws").read_text().strip())
        except OSError as error:
            raise InputError(f"{out} holds no run to go on with", code="VHT-INPUT-RUN") from error
        planned = replace(plan_study(StudyFile.read(study), clock()), request=StudyRequest.from_claims(claims))
        session = cls(planned, out, clock, say)
        session.study = study
        key = session.run.coordinator.signing_key()
        session.visits = Visits.read(out, planned.file.federation.ca, _known_heads(planned), key)
        return session

    def ask(self, *, check_first: bool = True) -> None:
        """Request the visits."""
        self.visits = self.run.ask(self.visits, check_first=check_first)
        (self.out / STUDY_FILE).write_text(f"{self.study}\n")

    def go_on(self) -> dict[str, Any]:
        """From wherever the run stands to its end; the result, also in ``result.json``.

        Raises the run's own typed error where it ended otherwise than completed.
        """
        directory = self.run.directory
        if not (self.out / "dispatch.json").exists() and not directory.state().ended:
            self.run.await_approvals(self.visits)
        state = directory.state()
        if not state.ended:
            state = self.run.run(self.visits)
        self._in_their_words(state)
        if state.state != "completed":
            self._account(state)
            state.raise_if_unsuccessful()
        if not (self.out / RESULT).exists():
            self._release()
        return self._published()

    def _in_their_words(self, state: RunState) -> None:
        """A node that ended its visit closes its enclave: to a courier it is merely gone. Ask each lost node why.

        Where one of them saw the permit revoked, a run that was refused for too few nodes is a revoked one.
        """
        refusals = {name: self.visits.refusal(name) for name, node in state.nodes.items() if node.lost}
        known = {name: error for name, error in refusals.items() if error is not None}
        if not known:
            return
        for name, error in known.items():
            state.nodes[name].lost, state.nodes[name].code = error.message, error.code
        if state.state == "refused":
            revoked = next((error for error in known.values() if isinstance(error, RevokedError)), None)
            if revoked is not None:
                state.end("revoked", revoked)
            elif state.error is not None and state.error["code"] == "VHT-COHORT-NODES":
                state.end("refused", state.too_few(self.run.planned.minimum_nodes))
        self.run.directory.write_state(state)

    def _release(self) -> None:
        try:
            released = self._releaser().release()
        except VhtError as error:
            state = self.run.directory.state()
            state.end("revoked" if isinstance(error, RevokedError) else "failed", error)
            state.releases = {}
            self.run.directory.write_state(state)
            self._account(state)
            raise
        self._write_result(self._result(self.run.directory.state(), released))

    def _published(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.out / RESULT).read_text())
        if result["publication"] is None:
            result["publication"] = self._releaser().publish()
            self._write_result(result)
        return result

    def _account(self, state: RunState) -> None:
        """Close the visits of a run that released nothing, and keep its evidence as far as it can be had."""
        receipts = self.run.close(self.visits, f"the run ended as {state.state}")
        try:
            self._releaser().write_evidence(
                state, {name: [receipt] for name, receipt in receipts.items()}, cohort=False
            )
        except (VhtError, OSError) as error:
            self.say(f"[yellow]the evidence of this run is incomplete: {error}[/]")

    def _releaser(self) -> Release:
        return Release(self.run, self.visits, self.run.coordinator.signing_key())

    def stop(self) -> None:
        """Stop the run and close the visits, as far as that is possible."""
        self.run.stop(self.visits)

    def _result(self, state: RunState, released: Released) -> dict[str, Any]:
        return {
            "schema_version": "1",
            "study_id": state.study_id,
            "state": state.state,
            "reason": state.reason,
            "participants": sorted(state.taking_part()),
            "lost": {name: node.lost for name, node in state.nodes.items() if node.lost},
            "releases": state.releases,
            "figures": released.figures,
            "paths": released.paths,
            "publication": None,
        }

    def _write_result(self, result: dict[str, Any]) -> None:
        replace_file(self.out / RESULT, (json.dumps(result, indent=2) + "\n").encode(), mode=READABLE)


def _known_heads(planned: PlannedStudy) -> KnownHeads:
    """Kept with the coordinator, so that every study of it knows what all saw."""
    return KnownHeads(planned.file.federation.coordinator / "heads")
