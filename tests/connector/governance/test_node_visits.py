"""A visit from request to end: every refusal has its code, every step is logged first, nothing spent is lost."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kit.hospital import COLUMNS, COMPONENT, DATASET, PLAN, PROFILE, Hospital, approved, ask, await_that

from connector.console.log_lines import refusals
from connector.governance.operator_accounts import Actor
from vht_federate.domain.law import ActorKind, DataCategory, Purpose
from vht_federate.domain.permit import DataUser
from vht_federate.domain.study import ComponentRef
from vht_federate.errors import BudgetError, PermitError, RefusedError, RevokedError, VhtError
from vht_federate.evidence.ledger_check import check_ledger
from vht_federate.evidence.node_log import read_node_log
from vht_federate.evidence.visit_record import visit_records
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.signing.canonical import canonical_bytes
from vht_federate.signing.keys import SigningKey

DIGEST = "ab" * 32
ADA = Actor("Dr Ada", "approver", "account")


def test_a_visit_runs_to_its_end_and_an_auditor_can_read_its_log(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        assert approved(node, visit.id) == "ready"
        for job, number in PLAN.calls():
            node.gate.begin(visit.id, job, number, DIGEST)
            node.gate.release(visit.id, job, number, DIGEST, 17)
        receipt = node.releases.acknowledge(node.visits.get(visit.id), "component", DIGEST)
        assert receipt == node.releases.acknowledge(node.visits.get(visit.id), "component", DIGEST)
        closed = node.visits.end(visit.id, "closed", code=None, reason="done")
        assert closed.receipt == node.visits.end(visit.id, "closed", code=None, reason="again").receipt
        await_that(lambda: not stocked.cohort_folders())
        export = node.evidence.export("permit-1")
        budget = node.overview.budget()["datasets"][DATASET]
        key = node.key.public
    assert stocked.enclaves.stopped == [visit.id]
    log = read_node_log("nodes/hospital-1.json", canonical_bytes(export), "hospital-1", "permit-1", key)
    (record,) = visit_records(log).values()
    assert check_ledger(record, epsilon_by_population) == pytest.approx(budget["spent"])
    assert budget["reserved"] == pytest.approx({"train": 0.0, "test": 0.0})
    assert [entry["body"].get("operator") for entry in stocked.log() if entry["kind"] == "visit.approved"] == ["Dr Ada"]


def _private(hospital: Hospital) -> str:
    user = DataUser(name="Company", kind=ActorKind.PRIVATE, kid=hospital.user.public.kid)
    return hospital.permit(purposes=(Purpose.PUBLIC_HEALTH,), data_users=(user,))


def _past(hospital: Hospital) -> str:
    start = datetime.now(UTC) - timedelta(days=9)
    return hospital.permit(issued_at=start, not_before=start, expires_at=start + timedelta(days=8))


def _forged(hospital: Hospital) -> str:
    head, body, signature = hospital.permit().split(".")
    return f"{head}.{body}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"


def _component(**changes: Any) -> ComponentRef:
    fields = {"name": "cardio-risk", "version": "0.1.0", "digest": COMPONENT.digest(), "profile": PROFILE}
    return ComponentRef(**{**fields, **changes})


REFUSALS: dict[str, Any] = {
    "VHT-PERMIT-PURPOSE": lambda h: (_private(h), h.study(purpose=Purpose.PUBLIC_HEALTH)),
    "VHT-PERMIT-EXPIRED": lambda h: (_past(h), h.study()),
    "VHT-PERMIT-SIGNATURE": lambda h: (_forged(h), h.study()),
    "VHT-PERMIT-ISSUER": lambda h: (h.permit(key=SigningKey.generate()), h.study()),
    "VHT-PERMIT-MALFORMED": lambda h: ("no permit", h.study()),
    "VHT-PERMIT-DATASET": lambda h: (
        h.permit(dataset_ids=("urn:vht:other",)),
        h.study(dataset_ids=("urn:vht:other",)),
    ),
    "VHT-PERMIT-COMPONENT": lambda h: (h.permit(), h.study(component=_component(digest="0" * 64))),
    "VHT-COMPONENT-DIGEST": lambda h: (
        h.permit(component_digests=("0" * 64,)),
        h.study(component=_component(digest="0" * 64)),
    ),
    "VHT-COMPONENT-NAME": lambda h: (h.permit(), h.study(component=_component(name="other"))),
    "VHT-COMPONENT-PROFILE": lambda h: (h.permit(), h.study(component=_component(profile="other"))),
    "VHT-PERMIT-COLUMN": lambda h: (h.permit(), h.study(columns=COLUMNS[1:])),
    "VHT-PERMIT-CATEGORY": lambda h: (h.permit(), h.study(categories=(DataCategory.GENOMIC,))),
    "VHT-PERMIT-MISMATCH": lambda h: (h.permit(), h.study(permit_id="permit-2")),
    "VHT-BUDGET-PERMIT": lambda h: (h.permit(epsilon=0.01), h.study()),
    "VHT-BUDGET-CAP": lambda h: (
        h.permit(epsilon=90.0),
        h.study(plan=PLAN.model_copy(update={"training": PLAN.training.model_copy(update={"noise_multiplier": 0.4})})),
    ),
}


def test_each_refusal_has_its_own_code_is_logged_and_reads_nothing(hospital: Hospital) -> None:
    with hospital.open() as node:
        for code, make in REFUSALS.items():
            permit, study = make(hospital)
            with pytest.raises(VhtError) as caught:
                node.visits.request(permit, study, hospital.user.public.jwk(), proof=hospital.proof())
            assert caught.value.code == code
            entry = hospital.log()[-1]
            assert (entry["kind"], entry["body"]["outcome"], entry["body"]["code"]) == (
                "permit.checked",
                "refused",
                code,
            )
        assert node.visits.all() == []
        assert not hospital.cohort_folders()
        assert hospital.kinds().count("budget.reserved") == 0


def test_a_study_signed_by_somebody_else_is_refused(hospital: Hospital) -> None:
    stranger = SigningKey.generate()
    with hospital.open() as node:
        with pytest.raises(PermitError) as caught:
            node.visits.request(hospital.permit(), hospital.study(key=stranger), stranger.public.jwk())
        assert caught.value.code == "VHT-PERMIT-USER"
        with pytest.raises(PermitError) as caught:
            node.visits.request(hospital.permit(), hospital.study(key=stranger), hospital.user.public.jwk())
        assert caught.value.code == "VHT-PERMIT-STUDY-SIGNATURE"


def test_without_a_fresh_status_list_nothing_is_let_in(hospital: Hospital) -> None:
    with hospital.open() as node:
        hospital.issuer.skew = timedelta(hours=-1)
        with pytest.raises(PermitError, match="stale") as caught:
            ask(node, hospital)
        assert caught.value.code == "VHT-PERMIT-STATUS-STALE"
        hospital.issuer.stop()
        with pytest.raises(PermitError) as caught:
            ask(node, hospital)
        assert caught.value.code == "VHT-PERMIT-STATUS-UNREACHABLE"
        assert hospital.log()[-1]["body"]["code"] == "VHT-PERMIT-STATUS-UNREACHABLE"


def test_an_older_status_list_than_one_seen_before_is_a_rollback(hospital: Hospital) -> None:
    hospital.permit(permit_id="other")
    with hospital.open() as node:
        old = node.visits.admission.status._source.fetch()
        hospital.issuer.revoke("other")
        ask(node, hospital)

        class Replayed:
            def fetch(self) -> str:
                return old

        node.visits.admission.status._source = Replayed()
        with pytest.raises(PermitError) as caught:
            ask(node, hospital, study=hospital.study(study_id="study-2"))
        assert caught.value.code == "VHT-PERMIT-STATUS-STALE"


def test_a_revoked_permit_is_refused_at_the_door(hospital: Hospital) -> None:
    with hospital.open() as node:
        permit = hospital.permit()
        hospital.issuer.revoke("permit-1")
        with pytest.raises(RevokedError):
            ask(node, hospital, permit)


def test_revoked_in_the_middle_the_next_round_is_refused_and_the_spend_stays(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        approved(node, visit.id)
        node.gate.begin(visit.id, "train", 1, DIGEST)
        node.gate.release(visit.id, "train", 1, DIGEST, 1)
        spent = node.overview.budget()["datasets"][DATASET]["spent"]["train"]
        stocked.issuer.revoke("permit-1")
        with pytest.raises(RevokedError):
            node.gate.begin(visit.id, "train", 2, DIGEST)
        with pytest.raises(RevokedError):
            node.gate.begin(visit.id, "train", 2, DIGEST)
        account = node.overview.budget()["datasets"][DATASET]
        assert node.visits.get(visit.id).state == "revoked"
        assert account["spent"]["train"] == spent > 0
        assert account["reserved"]["train"] == pytest.approx(0)
        await_that(lambda: stocked.enclaves.stopped == [visit.id])
        with pytest.raises(VhtError):
            node.releases.acknowledge(node.visits.get(visit.id), "component", DIGEST)
    kinds = stocked.kinds()
    assert kinds.count("permit.revoked-seen") == 1
    assert "round.begun" not in kinds[kinds.index("permit.revoked-seen") :]


def test_revoked_while_a_round_computes_its_answer_stays_inside(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        approved(node, visit.id)
        node.gate.begin(visit.id, "train", 1, DIGEST)
        stocked.issuer.revoke("permit-1")
        with pytest.raises(RevokedError):
            node.gate.release(visit.id, "train", 1, DIGEST, 1)
    assert "round.released" not in stocked.kinds()


def test_each_planned_call_is_drawn_once_and_no_other(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        with pytest.raises(RefusedError, match="requested"):
            node.gate.begin(visit.id, "train", 1, DIGEST)
        approved(node, visit.id)
        node.gate.begin(visit.id, "train", 1, DIGEST)
        for job, number, code in (
            ("train", 1, "VHT-REFUSED-REPLAY"),
            ("train", 3, "VHT-REFUSED-UNPLANNED"),
            ("marginals", 1, "VHT-REFUSED-UNPLANNED"),
            ("<script>", 1, "VHT-REFUSED-UNPLANNED"),
        ):
            with pytest.raises(RefusedError) as caught:
                node.gate.begin(visit.id, job, number, DIGEST)
            assert caught.value.code == code
            assert stocked.log()[-1]["kind"] == "round.refused"
            assert stocked.log()[-1]["body"]["code"] == code
        assert stocked.log()[-1]["body"]["job"] is None
        with pytest.raises(VhtError) as egress:
            node.gate.release(visit.id, "train", 2, DIGEST, 1)
        assert egress.value.code == "VHT-EGRESS-UNDRAWN"
        node.gate.release(visit.id, "train", 1, DIGEST, 1)
        node.gate.release(visit.id, "train", 1, DIGEST, 1)
        with pytest.raises(VhtError) as egress:
            node.gate.release(visit.id, "train", 1, "cd" * 32, 1)
        assert egress.value.code == "VHT-EGRESS-SECOND"
    assert stocked.kinds().count("round.begun") == stocked.kinds().count("round.released") == 1


def test_a_coordinator_that_keeps_asking_cannot_fill_the_log(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        for _ in range(130):
            node.gate.refused(visit.id, "train", 1, "VHT-REFUSED-TOKEN")
    refused = [entry for entry in stocked.log() if entry["kind"] == "round.refused"]
    assert len(refused) == 100
    assert refused[-1]["body"]["last_logged"] is True


def test_a_small_cohort_ends_the_visit_without_telling_its_size(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked, stocked.permit(minimum_cohort=41))
        assert approved(node, visit.id) == "failed"
        row = node.visits.get(visit.id)
        assert row.code == "VHT-COHORT-SMALL"
        assert "40" not in row.reason
        await_that(lambda: not stocked.cohort_folders())
        assert node.overview.budget()["datasets"][DATASET]["if_spent"]["train"] == 0
    assert not stocked.enclaves.started


def test_patients_who_opted_out_before_the_permit_was_issued_are_not_in_the_cohort(stocked: Hospital) -> None:
    with stocked.open() as node:
        for number in range(31):
            node.opt_out(f"p{number}", since=datetime.now(UTC) - timedelta(days=2))
        visit = ask(node, stocked)
        assert approved(node, visit.id) == "failed"
        assert node.visits.get(visit.id).code == "VHT-COHORT-SMALL"
        override = stocked.permit(permit_id="permit-2", overrides_opt_out=True)
        second = ask(node, stocked, override, stocked.study(permit_id="permit-2"))
        assert approved(node, second.id) == "ready"


def test_stop_halts_a_visit_at_once_and_names_who_did_it(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        approved(node, visit.id)
        node.gate.begin(visit.id, "train", 1, DIGEST)
        stopped = node.visits.stop(visit.id, ADA, "the ward moves tonight")
        assert (stopped.state, stopped.code) == ("halted", "VHT-REFUSED-STOPPED")
        assert stopped.reason == "stopped by the operator: the ward moves tonight"
        with pytest.raises(RefusedError, match="the ward moves tonight") as caught:
            node.gate.begin(visit.id, "train", 2, DIGEST)
        assert caught.value.code == "VHT-REFUSED-STOPPED"
        with pytest.raises(RefusedError) as caught:
            node.gate.release(visit.id, "train", 1, DIGEST, 1)
        assert caught.value.code == "VHT-REFUSED-STOPPED"
        await_that(lambda: stocked.enclaves.stopped == [visit.id] and not stocked.cohort_folders())
    (closed,) = [entry["body"] for entry in stocked.log() if entry["kind"] == "visit.closed"]
    assert (closed["operator"], closed["state"]) == ("Dr Ada", "halted")
    assert [event["label"] for event in closed["spent"]] == ["count", "train"]


def test_a_rejected_visit_says_who_and_why_and_reads_nothing(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        node.visits.reject(visit.id, ADA, "not now")
    (rejected,) = [entry["body"] for entry in stocked.log() if entry["kind"] == "visit.rejected"]
    assert (rejected["operator"], rejected["reason"]) == ("Dr Ada", "not now")
    assert not stocked.cohort_folders()


@pytest.mark.parametrize("ending", ["closed", "rejected", "halted", "failed", "revoked"])
def test_deciding_on_what_has_ended_is_an_error_and_refuses_nothing(hospital: Hospital, ending: str) -> None:
    with hospital.open() as node:
        visit = ask(node, hospital)
        node.visits.end(visit.id, ending, code=None, reason="it was over")
        before, ended_as = hospital.kinds(), node.visits.get(visit.id).state
        for decide in (lambda: node.visits.approve(visit.id, ADA), lambda: node.visits.reject(visit.id, ADA, "no")):
            with pytest.raises(RefusedError, match=f"ended as {ended_as}: it was over") as caught:
                decide()
            assert caught.value.code == "VHT-REFUSED-STATE"
        assert refusals(node.evidence, 10) == []
        assert hospital.kinds() == before


def test_a_waiting_visit_that_is_stopped_is_rejected(hospital: Hospital) -> None:
    with hospital.open() as node:
        visit = ask(node, hospital)
        assert node.visits.stop(visit.id, ADA).state == "rejected"
    assert hospital.kinds().count("visit.rejected") == 1


def test_the_second_study_pays_for_the_first(stocked: Hospital) -> None:
    permit = stocked.permit(epsilon=1.1 * max(epsilon_by_population(PLAN.events(), 1e-5).values()))
    with stocked.open() as node:
        first = ask(node, stocked, permit)
        approved(node, first.id)
        with pytest.raises(BudgetError) as caught:
            ask(node, stocked, permit, stocked.study(study_id="study-2"))
        assert caught.value.code == "VHT-BUDGET-PERMIT"
        node.visits.end(first.id, "closed", code=None, reason="nothing drawn")
        second = ask(node, stocked, permit, stocked.study(study_id="study-3"))
        assert approved(node, second.id) == "ready"


def test_a_retry_with_its_key_finds_the_same_visit_and_a_copycat_does_not(hospital: Hospital) -> None:
    with hospital.open() as node:
        permit, study = hospital.permit(), hospital.study()
        first = ask(node, hospital, permit, study, retry_key="secret of the coordinator")
        again = ask(node, hospital, permit, study, retry_key="secret of the coordinator")
        assert again.id == first.id
        for key in (None, "guess"):
            with pytest.raises(RefusedError) as caught:
                ask(node, hospital, permit, study, retry_key=key)
            assert caught.value.code == "VHT-REFUSED-DUPLICATE"


@pytest.mark.parametrize("ending", ["closed", "rejected", "halted", "failed", "revoked"])
def test_a_request_that_had_a_visit_never_gets_another_even_with_its_key(hospital: Hospital, ending: str) -> None:
    """Permit, request and user key are in the published evidence: whoever holds them could send them again."""
    with hospital.open() as node:
        permit, study = hospital.permit(), hospital.study()
        first = ask(node, hospital, permit, study, retry_key="k")
        node.visits.end(first.id, ending, code=None, reason="over")
        for key in ("k", None, "guess"):
            with pytest.raises(RefusedError) as caught:
                ask(node, hospital, permit, study, retry_key=key)
            assert caught.value.code == "VHT-REFUSED-DUPLICATE"
            assert hospital.log()[-1]["body"]["code"] == "VHT-REFUSED-DUPLICATE"
        assert [visit.id for visit in node.visits.all()] == [first.id]
        assert ask(node, hospital, permit, hospital.study()).id != first.id  # signed anew


@pytest.mark.parametrize(
    ("age", "fresh"),
    [
        (timedelta(hours=23, minutes=59), True),
        (timedelta(hours=24, minutes=1), False),
        (-timedelta(minutes=4), True),
        (-timedelta(minutes=6), False),
    ],
)
def test_a_request_is_let_in_while_it_is_new(hospital: Hospital, age: timedelta, fresh: bool) -> None:
    with hospital.open() as node:
        study = hospital.study(created_at=datetime.now(UTC) - age)
        if fresh:
            assert ask(node, hospital, study=study).state == "requested"
            return
        with pytest.raises(RefusedError) as caught:
            ask(node, hospital, study=study)
        assert caught.value.code == hospital.log()[-1]["body"]["code"] == "VHT-REFUSED-STALE"
        assert node.visits.all() == []


def test_an_enclave_that_does_not_start_fails_the_visit_with_its_code(stocked: Hospital) -> None:
    stocked.enclaves.refuse = RefusedError("no", code="VHT-COMPONENT-DIGEST")
    with stocked.open() as node:
        visit = ask(node, stocked)
        assert approved(node, visit.id) == "failed"
        assert node.visits.get(visit.id).code == "VHT-COMPONENT-DIGEST"


def test_an_enclave_that_is_lost_ends_its_visit(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        approved(node, visit.id)
        node._enclave_lost(visit.id, RefusedError("gone", code="VHT-UNAVAILABLE-ENCLAVE"))
        assert node.visits.get(visit.id).state == "failed"
