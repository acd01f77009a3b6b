"""After the rounds: package, cohort, receipts, closing, evidence, local verification, publication.

Nothing is released before every node that took part has the digest in its log; nothing is published that does not
verify here first.
"""

import io
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from strategies.node_visits import Visits
from strategies.run_figures import events_of_log, events_of_run, figures_of
from strategies.run_state import RunState
from strategies.study_run import StudyRun
from vht_federate.client import Client
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.errors import CohortError, InputError, RevokedError, UnavailableError, VhtError, WireError
from vht_federate.evidence.bundle import BundleParts, write_bundle
from vht_federate.evidence.events import VisitClosed
from vht_federate.packaging.card import CardFacts
from vht_federate.packaging.cohort import CohortRequest, CohortResult
from vht_federate.packaging.component import write_package
from vht_federate.packaging.statement import reported_gradient_engines
from vht_federate.privacy.statement import privacy_statement
from vht_federate.signing.keys import PublicKey, SigningKey
from vht_federate.text import counted

__all__ = ["Release", "Released"]

WITHHELD = "VHT-COHORT-QUALITY"  # the one failure of a cohort that leaves the rest of the release as it is


@dataclass
class Released:
    """What a run left in its folder. Paths are absolute."""

    figures: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Release:
    """The release of one completed run."""

    run: StudyRun
    visits: Visits
    key: SigningKey

    def release(self) -> Released:
        """All steps, in order. Raises the first typed error; the run's folder then shows how far it came.

        What goes wrong at a hospital costs the release that hospital, while as many are left as the permit asks for;
        a revoked permit ends it.
        """
        run, out = self.run, self.run.out.resolve()
        state = run.directory.state()
        self._clear()
        statement = self._statement(state)
        sealed = self._package(state, statement)
        artefacts = {"component": sealed}
        cohort = self._cohort(state, statement)
        if cohort is not None:
            artefacts["cohort"] = cohort.sha256
        receipts = self._acknowledged(state, artefacts)
        for name, receipt in self.run.close(self.visits, "the study is complete").items():
            receipts.setdefault(name, []).append(receipt)
        state.releases = artefacts
        run.directory.write_state(state)
        self.write_evidence(state, receipts, cohort=cohort is not None)
        self._verify()
        cohort_figures = {"rows": cohort.rows, "epsilon": cohort.epsilon} if cohort else None
        paths = {"package": f"release/{run.planned.component.name}", "bundle": "bundle", "run": "run.json"}
        paths |= {"cohort": "cohort"} if cohort else {}
        return Released(
            figures=figures_of(run.directory, state, statement, cohort_figures),
            paths={name: str(out / path) for name, path in paths.items()},
        )

    # ---- artefacts -------------------------------------------------------------------------------------------

    def _statement(self, state: RunState) -> dict[str, Any]:
        """From what every node truly drew, by its own log; by what arrived where its log cannot be had."""
        plan, ran = self.run.planned.request.plan, {}
        for name, node in state.nodes.items():
            if name not in self.visits.by_node:
                continue
            try:
                ran[name] = _drawn(name, node.visit, self.visits.evidence(name))
            except VhtError as error:
                self._lose(state, name, error)
                ran[name] = events_of_run(state, plan, name)
        self._require_enough(state)
        engines = reported_gradient_engines(self.run.directory.recorded(state, "train", 1))
        return privacy_statement(plan, {name: events for name, events in ran.items() if events}, engines)

    def _package(self, state: RunState, statement: dict[str, Any]) -> str:
        planned, plan = self.run.planned, self.run.planned.request.plan
        taking_part = state.taking_part()
        facts = CardFacts(
            study_id=planned.request.study_id,
            permit_id=planned.permit.permit_id,
            purpose=planned.request.purpose.value,
            created_at=self.run.clock(),
            nodes=len(taking_part),
            rounds=plan.training.rounds,
            patients_noised=sum(state.patients_noised[name] for name in taking_part),
            training=plan.training.model_dump(mode="json"),
            evaluation=(state.evaluation or {}).get("pooled") or None,
            evaluation_intervals=(state.evaluation or {}).get("intervals", {}).get("pooled"),
        )
        sealed = write_package(
            self.run.out / "release" / planned.component.name,
            planned.component_dir,
            planned.request.component.profile,
            weights=self.run.directory.weights(plan.training.rounds),
            facts=facts,
            statement=statement,
            run=state.model_dump(mode="json"),
            key=self.key,
        )
        return sealed.sha256

    def _cohort(self, state: RunState, statement: dict[str, Any]) -> CohortResult | None:
        planned = self.run.planned
        if planned.request.plan.cohort is None or planned.request.codebook is None:
            return None
        points = list(entry_points(group="vht.cohort_makers"))
        if not points:
            raise InputError(
                "no cohort maker is installed", code="VHT-INPUT-COHORT-MAKER", hint="pip install 'vht-federate[synth]'"
            )
        self.run.say("making the synthetic cohort from the noisy marginals")
        directory = self.run.directory
        tables = [
            {name: reply.tensors for name, reply in directory.recorded(state, "marginals", number).items()}
            for number in (1, 2)
        ]
        request = CohortRequest(
            study_id=planned.request.study_id,
            permit_id=planned.permit.permit_id,
            component=planned.component,
            component_digest=planned.request.component.digest,
            profile=planned.request.component.profile,
            plan=planned.request.plan,
            codebook=planned.request.codebook,
            one_way=tables[0],
            two_way=tables[1],
            statement=statement,
            created_at=self.run.clock(),
            out=self.run.out / "cohort",
            key=self.key,
        )
        try:
            cohort: CohortResult = points[0].load()(request)
        except CohortError as error:
            if error.code != WITHHELD:
                raise
            # The budget is spent either way, and the component does not depend on the cohort: release it alone.
            shutil.rmtree(request.out, ignore_errors=True)
            self.run.say(f"the cohort is withheld: {error.message}")
            state.reason = f"{state.reason}; the cohort is withheld: {error.message}"
            return None
        return cohort

    # ---- evidence --------------------------------------------------------------------------------------------

    def _acknowledged(self, state: RunState, artefacts: dict[str, str]) -> dict[str, list[str]]:
        """Receipts by node. A node that is gone is lost; fewer than the minimum raise CohortError VHT-COHORT-NODES."""
        receipts: dict[str, list[str]] = {}
        for name in state.taking_part():
            try:
                receipts[name] = [self.visits.acknowledge(name, kind, sha256) for kind, sha256 in artefacts.items()]
            except VhtError as error:
                self._lose(state, name, error)
        self._require_enough(state)
        for kind, sha256 in artefacts.items():
            self.run.say(f"{kind} {sha256[:12]}… acknowledged by {counted(len(state.taking_part()), 'node')}")
        return receipts

    def _lose(self, state: RunState, name: str, error: VhtError) -> None:
        """Go on without ``name``, which says why in its own words where it ended its visit.

        Raises RevokedError where the permit is revoked. A node that was lost before stays as it is.
        """
        if state.nodes[name].lost is not None:
            return
        reason = error if isinstance(error, UnavailableError) else self.visits.refusal(name) or error
        if isinstance(reason, RevokedError):
            raise reason
        state.lose(name, reason)
        self.run.directory.write_state(state)
        self.run.say(f"[red]takes no further part[/]: {name} ({reason.code})")

    def _require_enough(self, state: RunState) -> None:
        """Raises CohortError VHT-COHORT-NODES with the reason of each node that is gone."""
        if len(state.taking_part()) < self.run.planned.minimum_nodes:
            raise state.too_few(self.run.planned.minimum_nodes)

    def _clear(self) -> None:
        """Remove what an interrupted release left behind."""
        for name in ("release", "cohort", "bundle"):
            shutil.rmtree(self.run.out / name, ignore_errors=True)

    def write_evidence(self, state: RunState, receipts: dict[str, list[str]], *, cohort: bool) -> None:
        """Write ``bundle/``: also for a run that was refused, revoked or stopped, then without a release.

        A node whose log cannot be had, or does not close the visit of a release, is lost.
        """
        run, planned = self.run, self.run.planned
        shutil.rmtree(run.out / "bundle", ignore_errors=True)
        nodes = {}
        for name, node in state.nodes.items():
            try:
                if name in self.visits.by_node:
                    nodes[name] = self.visits.evidence(name)
                    if state.releases and node.lost is None:
                        _require_closed(name, node.visit, nodes[name])
            except VhtError as error:
                self._lose(state, name, error)
        if state.releases:
            self._require_enough(state)
        run.keep_status("end")  # after the logs: no round in them is younger than this list
        released = state.releases
        parts = BundleParts(
            permit=planned.permit_token,
            study=(run.out / "study.jws").read_text().strip(),
            user_key=planned.user_key.public,
            statuses={name: (run.out / f"status-{name}.jwt").read_text().strip() for name in ("start", "end")},
            nodes=nodes,
            run=(run.out / "run.json").read_bytes(),
            outputs={
                f"{phase.job}-{phase.round}": run.directory.recorded(state, phase.job, phase.round)
                for phase in state.rounds
            },
            receipts={name: tokens for name, tokens in receipts.items() if name in nodes},
            component=run.out / "release" / planned.component.name if "component" in released else None,
            component_name=planned.component.name,
            cohort=run.out / "cohort" if cohort and "cohort" in released else None,
        )
        write_bundle(
            run.out / "bundle",
            parts,
            self.key,
            study_id=planned.request.study_id,
            permit_id=planned.permit.permit_id,
            created_at=run.clock(),
        )

    def _verify(self) -> None:
        """With keys as this coordinator knows them: whoever audits brings their own. Raises VerificationError."""
        from vht_federate.evidence.verify import TrustFile, verify_bundle

        federation = self.run.planned.file.federation
        with Client(str(federation.issuer), federation.ca) as client:
            issuer = PublicKey.from_jwk(client.get("/keys")["keys"][0])
        nodes = {name: PublicKey.from_jwk(visit.evidence_key) for name, visit in self.visits.by_node.items()}
        verify_bundle(self.run.out / "bundle", TrustFile.of(issuer, self.key.public, nodes))
        self.run.say("all evidence verifies")

    def publish(self) -> dict[str, Any] | None:
        """Hand the bundle to the platform, where the study names one. Raises PublicationError as the platform does."""
        federation = self.run.planned.file.federation
        if federation.platform is None:
            return None
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
            for path in sorted((self.run.out / "bundle").rglob("*")):
                if path.is_file():
                    archive.add(path, arcname=path.relative_to(self.run.out / "bundle").as_posix(), recursive=False)
        files = {"bundle": ("bundle.tar.gz", packed.getvalue(), "application/gzip")}
        with Client(federation.platform, federation.ca, timeout_s=120) as client:
            answer: dict[str, Any] = client.request("POST", "/publications", files=files).json()
        self.run.say(f"published as {answer.get('publication')}")
        return answer


def _drawn(name: str, visit: str, export: Mapping[str, Any]) -> list[PrivacyEvent]:
    """Raises WireError VHT-WIRE-VISIT for what is no log: whether its signatures hold is verified at the end."""
    try:
        return events_of_log(export, visit)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WireError(f"{name} answered with no log", code="VHT-WIRE-VISIT") from error


def _require_closed(name: str, visit: str, export: Mapping[str, Any]) -> None:
    """Raises UnavailableError VHT-UNAVAILABLE-CLOSE: of a node that took part to the end, evidence asks for that.

    Raises WireError VHT-WIRE-VISIT as ``_drawn`` does.
    """
    _drawn(name, visit, export)
    if not any(
        entry.get("kind") == VisitClosed.entry_kind and entry.get("visit") == visit for entry in export["entries"]
    ):
        raise UnavailableError(f"{name} did not close its visit", code="VHT-UNAVAILABLE-CLOSE")
