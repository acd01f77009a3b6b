"""Whatever a node does before, during and after a visit, its evidence verifies: one node, every documented flow."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kit.feasibility_questions import ask as ask_question
from kit.feasibility_questions import question, silence
from kit.fhir_api_client import Program
from kit.hospital import PLAN, Hospital, approved, ask, write_fhir
from kit.hostile_table import Answered
from kit.node_bundles import verified

from connector.governance.operator_accounts import Actor
from connector.governance.refusal_quota import LOGGED
from connector.listeners.internal import internal_app
from connector.node import Node
from vht_federate.errors import RefusedError, RevokedError, VerificationError, VhtError
from vht_federate.evidence import visit_record
from vht_federate.evidence.client_record import FHIR_KINDS
from vht_federate.evidence.events import EVENTS
from vht_federate.testing.asgi import AppClient

DIGEST = "ab" * 32
ADA = Actor("Dr Ada", "approver", "account")


@dataclass
class Walk:
    """The flows of one node that do not belong to the visit that is verified, each under the study's own permit."""

    hospital: Hospital
    node: Node
    phase: str

    def all(self) -> None:
        for flow in (self.intake, self.opt_outs, self.question, self.program, self.other_studies):
            flow()

    def intake(self) -> None:
        self.node.ingest(write_fhir(self.hospital.root / f"fhir-{self.phase}"), actor=ADA)

    def opt_outs(self) -> None:
        self.node.opt_out("p3", actor=ADA)
        assert self.node.withdraw_opt_out("p3", actor=ADA)

    def question(self) -> None:
        self.node.feasibility.pause = lambda _: None
        self.node.feasibility.noise = silence
        assert ask_question(self.node, self.hospital, title=self.phase, epsilon=0.05)
        with pytest.raises(RefusedError):
            ask_question(self.node, self.hospital, epsilon=9.0)
        with pytest.raises(VhtError):
            self.node.feasibility.answer(
                self.hospital.permit(permit_id="other"), question(self.hospital), self.hospital.user.public.jwk()
            )

    def program(self) -> None:
        web = AppClient(internal_app(self.node), raise_app_exceptions=False)
        program = Program(self.node, web).register(self.hospital.permit())
        assert program.search("Patient")
        program.await_export(program.export())
        self.node.fhir_api.clients.revoke(program.id, ADA)
        Program(self.node, web).register(self.hospital.permit())

    def strangers(self) -> None:
        """More than stand in the log one by one."""
        old = self.hospital.study(created_at=datetime.now(UTC) - timedelta(days=2))
        for _ in range(LOGGED + 2):
            with pytest.raises(RefusedError):
                ask(self.node, self.hospital, study=old)
        self.node.visits.admission.refusals.settle(closing=True)

    def other_studies(self) -> None:
        study = self.hospital.study(study_id=f"study-{self.phase}")
        visit = ask(self.node, self.hospital, study=study)
        with pytest.raises(RefusedError) as repeated:
            ask(self.node, self.hospital, study=study)
        assert repeated.value.code == "VHT-REFUSED-DUPLICATE"
        self.hospital.issuer.stop()
        with pytest.raises(VhtError) as unreachable:
            self.node.visits.approve(visit.id, ADA)
        self.hospital.issuer.start()
        assert unreachable.value.code == "VHT-PERMIT-STATUS-UNREACHABLE"
        self.node.visits.reject(visit.id, ADA, "not today")


def _rounds(node: Node, visit_id: str) -> None:
    for job, number in PLAN.calls():
        node.gate.begin(visit_id, job, number, DIGEST)
        with pytest.raises(VhtError):
            node.gate.begin(visit_id, job, number, DIGEST)
        node.gate.release(visit_id, job, number, DIGEST, 17)
    with pytest.raises(VhtError):
        node.gate.begin(visit_id, "train", 99, DIGEST)


@pytest.mark.hostile("every-flow")
def test_the_log_of_a_node_verifies_whatever_happens_beside_a_visit(
    stocked: Hospital, tmp_path: Path, answered: Answered
) -> None:
    bundles = tmp_path / "bundles"
    permit = stocked.permit()
    with stocked.open() as node:
        before = Walk(stocked, node, "before")
        before.all()
        before.strangers()
    with stocked.open() as node:  # restarted
        visit = ask(node, stocked, permit)
        verified(node, stocked, visit.id, bundles / "requested")
        assert approved(node, visit.id) == "ready"
        verified(node, stocked, visit.id, bundles / "ready")
        Walk(stocked, node, "during").all()
        verified(node, stocked, visit.id, bundles / "during")
        _rounds(node, visit.id)
        for kind in ("component", "metrics"):
            node.releases.acknowledge(node.visits.get(visit.id), kind, DIGEST)
        verified(node, stocked, visit.id, bundles / "rounds")
        stopped = ask(node, stocked, permit, stocked.study(study_id="study-stopped"))
        approved(node, stopped.id)
        node.visits.stop(stopped.id, ADA)
        node.visits.end(visit.id, "closed", code=None, reason="done")
        closed = verified(node, stocked, visit.id, bundles / "closed")
        assert any("programs of the hospital" in check.what for check in closed.checks)
        Walk(stocked, node, "after").all()
        verified(node, stocked, visit.id, bundles / "after")
        _revoked(node, stocked, permit)
        verified(node, stocked, visit.id, bundles / "revoked")
    with Node(stocked.state, clock=lambda: datetime.now(UTC) + timedelta(days=400)) as node:
        node.start(enclaves=stocked.enclaves, sweep_every_s=3600.0)
        node.expiry.sweep()
        # The node's clock is far ahead: what it signs is younger than any list of the issuer, and nothing began.
        verified(node, stocked, visit.id, bundles / "erased")
    assert set(stocked.kinds()) == set(EVENTS)
    answered("it verifies, at eight moments")


@pytest.mark.hostile("every-flow", control=True)
def test_control_a_verifier_that_does_not_know_programs_fails_at_the_first(
    stocked: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = visit_record._OUTSIDE_VISITS - FHIR_KINDS
    monkeypatch.setattr(visit_record, "_OUTSIDE_VISITS", known)
    with stocked.open() as node:
        visit = ask(node, stocked)
        verified(node, stocked, visit.id, tmp_path / "before")
        Walk(stocked, node, "during").program()
        with pytest.raises(VerificationError, match=r"fhir\."):
            verified(node, stocked, visit.id, tmp_path / "after")


def _revoked(node: Node, hospital: Hospital, permit: str) -> None:
    """A visit that is ready when its permit is withdrawn."""
    late = ask(node, hospital, permit, hospital.study(study_id="study-late"))
    approved(node, late.id)
    hospital.issuer.revoke("permit-1")
    with pytest.raises(RevokedError):
        node.gate.begin(late.id, "train", 1, DIGEST)
    with pytest.raises(VhtError):
        node.gate.begin(late.id, "train", 1, DIGEST)


PERMIT = "permit-1"
REGISTERED = {"client": "c1", "name": "registry", "scope": "system/*.rs"}
EXPORTED = {"client": "c1", "resources_rounded": {"Patient": 40}, "digest": DIGEST}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("fhir.exported", EXPORTED)], "was not registered"),
        ([("fhir.client-revoked", {"client": "c1"})], "was not registered"),
        ([("fhir.client-registered", REGISTERED)] * 2, "stands twice"),
        ([("fhir.client-registered", {"client": "c1"})], "is not one"),
        (
            [("fhir.client-registered", REGISTERED), *[("fhir.client-revoked", {"client": "c1"})] * 2],
            "stands twice",
        ),
    ],
)
def test_what_is_told_of_a_program_must_make_sense(
    entries: list[tuple[str, dict[str, Any]]], words: str, stocked: Hospital, tmp_path: Path
) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        for kind, body in entries:
            node.evidence.append(kind, body, permit_id=PERMIT)
        with pytest.raises(VerificationError, match=words) as caught:
            verified(node, stocked, visit.id, tmp_path / "bundle")
    assert caught.value.code == "VHT-VERIFY-ORDER"


@pytest.mark.parametrize("kind", sorted(FHIR_KINDS))
def test_a_programs_entry_is_of_no_visit(kind: str, stocked: Hospital, tmp_path: Path) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        node.evidence.append(kind, REGISTERED | EXPORTED, permit_id=PERMIT, visit=visit.id)
        with pytest.raises(VerificationError, match="belongs to a visit"):
            verified(node, stocked, visit.id, tmp_path / "bundle")
