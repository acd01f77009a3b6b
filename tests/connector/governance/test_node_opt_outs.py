"""Opt-outs hold as of a permit's issue date (Article 71), and are kept without a patient's identifier."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.commands import vht_node
from kit.hospital import Hospital, approved, ask
from safetensors.numpy import load

from connector.console.log_lines import log_lines
from connector.fhir.subject_keys import subject_key
from connector.governance.operator_accounts import Actor
from connector.governance.opt_outs import excluded_subjects, opt_out, withdraw
from connector.governance.pseudonyms import erase, pseudonymiser
from connector.node import Node
from connector.store import Database, migrate
from connector.store.models import OptOutRow
from vht_federate.domain.permit import Permit
from vht_federate.errors import InputError, NotFoundError, PermitError
from vht_federate.evidence.node_log import read_node_log
from vht_federate.evidence.visit_record import visit_records
from vht_federate.permits.check import read_permit
from vht_federate.signing.canonical import canonical_bytes

ISSUED = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.at(tmp_path / "node.sqlite")
    migrate(database)
    yield database
    database.close()


def permit(**changes: Any) -> Permit:
    fields = {
        "permit_id": "p",
        "hdab": "HDAB",
        "application_ref": "a",
        "issued_at": ISSUED,
        "not_before": ISSUED,
        "expires_at": ISSUED + 30 * DAY,
        "categories": ("51.1.a",),
        "dataset_ids": ("d",),
        "columns": ("age",),
        "purposes": ("53.1.e.ii",),
        "purpose_text": "",
        "controller": "c",
        "data_users": ({"name": "u", "kind": "academic", "kid": "k"},),
        "component_digests": ("0" * 64,),
        "epsilon": 1.0,
        "delta": 1e-5,
        "minimum_nodes": 1,
        **changes,
    }
    return Permit.model_validate(fields)


@pytest.mark.parametrize(
    ("since", "until", "excluded"),
    [
        (ISSUED - DAY, None, True),
        (ISSUED, None, True),
        (ISSUED + timedelta(seconds=1), None, False),
        (ISSUED + DAY, None, False),
        (ISSUED - 2 * DAY, ISSUED - DAY, False),
        (ISSUED - 2 * DAY, ISSUED, False),
        (ISSUED - 2 * DAY, ISSUED + DAY, True),
    ],
)
def test_what_counts_is_the_moment_the_permit_was_issued(
    database: Database, since: datetime, until: datetime | None, excluded: bool
) -> None:
    with database.write() as session:
        opt_out(session, "s", since, ISSUED)
        if until:
            assert withdraw(session, "s", until, until)
    with database.read() as session:
        assert excluded_subjects(session, permit()) == ({"s"} if excluded else set())
        assert excluded_subjects(session, permit(overrides_opt_out=True)) == set()


def test_a_withdrawal_opens_the_next_permit_and_an_opt_out_again_closes_the_one_after(database: Database) -> None:
    with database.write() as session:
        opt_out(session, "s", ISSUED - 9 * DAY, ISSUED)
        withdraw(session, "s", ISSUED + DAY, ISSUED)
        opt_out(session, "s", ISSUED + 5 * DAY, ISSUED)
    with database.read() as session:
        excluded = [
            bool(excluded_subjects(session, permit(issued_at=ISSUED + days * DAY, not_before=ISSUED + 7 * DAY)))
            for days in (0, 2, 6)
        ]
    assert excluded == [True, False, True]


def test_repeating_changes_nothing_and_withdrawing_nothing_is_said(database: Database) -> None:
    with database.write() as session:
        opt_out(session, "s", ISSUED, ISSUED)
        opt_out(session, "s", ISSUED + DAY, ISSUED)
        assert session.query(OptOutRow).count() == 1
        assert not withdraw(session, "other", ISSUED, ISSUED)
        with pytest.raises(InputError, match="before it began"):
            withdraw(session, "s", ISSUED - DAY, ISSUED - 2 * DAY)
        with pytest.raises(InputError, match="before it is recorded"):
            withdraw(session, "s", ISSUED + DAY, ISSUED + 2 * DAY)


@settings(max_examples=20, deadline=None)
@given(moments=st.lists(st.integers(-5, 5), min_size=1, max_size=6, unique=True))
def test_any_history_agrees_with_reading_it_in_order(moments: list[int], tmp_path_factory: Any) -> None:
    """Alternate opt-out and withdrawal in time order; at issue the last word counts."""
    database = Database.at(tmp_path_factory.mktemp("h") / "node.sqlite")
    migrate(database)
    history = sorted(moments)
    with database.write() as session:
        for number, days in enumerate(history):
            moment = ISSUED + days * DAY
            opt_out(session, "s", moment, ISSUED) if number % 2 == 0 else withdraw(session, "s", moment, moment)
    opted_out = [number % 2 == 0 for number, days in enumerate(history) if days <= 0]
    with database.read() as session:
        assert bool(excluded_subjects(session, permit())) is bool(opted_out and opted_out[-1])
    database.close()


def _excluded(node: Node, token: str) -> int:
    with node.database.read() as session:
        return len(excluded_subjects(session, read_permit(token, node.issuer)))


def test_what_an_issued_permit_must_leave_out_cannot_be_brought_back_by_an_earlier_date(stocked: Hospital) -> None:
    with stocked.open(start=False) as node:
        token = stocked.permit()
        issued = read_permit(token, node.issuer).issued_at
        node.opt_out("p1", since=issued - 5 * DAY)
        with pytest.raises(InputError, match="before it is recorded"):
            node.withdraw_opt_out("p1", at=issued - 4 * DAY)
        assert _excluded(node, token) == 1
        assert node.withdraw_opt_out("p1")
        assert not node.withdraw_opt_out("p1")
        assert _excluded(node, token) == 1


def test_each_change_is_in_the_log_with_who_made_it_and_an_auditor_of_a_permit_sees_none(stocked: Hospital) -> None:
    ada = Actor("Dr Ada", "approver", "account")
    with stocked.open() as node:
        node.ingest(stocked.root / "fhir", actor=ada)
        visit = ask(node, stocked)
        node.opt_out("patient-of-note", since=ISSUED, actor=ada, ahead=True)
        node.opt_out("patient-of-note", since=ISSUED + DAY, actor=ada, ahead=True)  # changes nothing
        node.withdraw_opt_out("patient-of-note")
        export = canonical_bytes(node.evidence.export(visit.permit_id))
        log = read_node_log("nodes/hospital-1.json", export, "hospital-1", visit.permit_id, node.key.public)
        assert visit.id in visit_records(log)
        sentences = [line["sentence"] for line in log_lines(node.evidence, 2)[0]]
    assert b"optout" not in export
    ingested, recorded, withdrawn = (
        [entry["body"] for entry in stocked.log() if entry["kind"] == kind]
        for kind in ("dataset.ingested", "optout.recorded", "optout.withdrawn")
    )
    assert (ingested[-1]["operator"], ingested[-1]["via"]) == ("Dr Ada", "account")
    assert ingested[0]["via"] == "system-user"
    assert [(body["operator"], body["since"]) for body in recorded] == [("Dr Ada", ISSUED.isoformat())]
    assert [body["via"] for body in withdrawn] == ["system-user"]
    assert len(recorded[0]["subject"]) == 64
    assert "withdrawn by" in sentences[0]
    assert "recorded by Dr Ada" in sentences[1]


def test_a_database_that_was_lost_gets_its_opt_outs_back_from_the_log(stocked: Hospital) -> None:
    with stocked.open() as node:
        token = stocked.permit()
        node.opt_out("p1", since=ISSUED)
        node.withdraw_opt_out("p1")
        node.opt_out("p2", since=ISSUED)
        node.opt_out("p3")
        assert _excluded(node, token) == 2
    for path in stocked.state.glob("node.sqlite*"):
        path.unlink()
    for _ in range(2):  # the second time finds them there
        with stocked.open() as node:
            assert _excluded(node, token) == 2
            with node.database.read() as session:
                rows = session.query(OptOutRow).all()
                assert sorted(row.until is None for row in rows) == [False, True, True]


def test_an_opt_out_of_a_patient_who_is_not_held_is_recorded_when_that_is_meant_only(stocked: Hospital) -> None:
    state = stocked.state
    with pytest.raises(NotFoundError) as caught:
        vht_node("opt-out", state, "p1-mistyped")
    assert caught.value.code == "VHT-INPUT-PATIENT"
    assert "optout.recorded" not in stocked.kinds()
    assert vht_node("opt-out", state, "p1")["recorded"] is True
    assert vht_node("opt-out", state, "not-here-yet", "--ahead")["recorded"] is True
    with stocked.open(start=False) as node, node.database.read() as session:
        assert len(session.query(OptOutRow).all()) == 2


NAMES = ["Patient/p1", "urn:uuid:p1", "https://ehr.example/r4/Patient/p1", "Patient/p1/_history/3", " p1\n"]
NOBODY = [
    "patient/p1",
    "Group/p1",
    "Patient/",
    "Patient?identifier=7",
    "urn:oid:1.2",
    "p 1",
    "x" * 65,
    "ä1",
    "Patient/p1#a",
]


def test_a_reference_opts_out_the_patient_that_it_names(stocked: Hospital) -> None:
    with stocked.open(start=False) as node:
        later = node.clock() + DAY
        token = stocked.permit(issued_at=later, not_before=later)
        for name in NAMES:
            for ahead in (False, True):
                node.opt_out(name, ahead=ahead)
                assert _excluded(node, token) == 1
                assert node.withdraw_opt_out(name)
                assert _excluded(node, token) == 0
        with node.database.read() as session:
            subjects = {row.subject for row in session.query(OptOutRow).all()}
        assert subjects == {subject_key(node.secret.subject_key, "p1")}


def test_what_names_no_patient_is_refused_and_changes_nothing(stocked: Hospital) -> None:
    with stocked.open(start=False) as node:
        for name in NOBODY:
            for change in (node.opt_out, partial(node.opt_out, ahead=True), node.withdraw_opt_out):
                with pytest.raises(InputError) as caught:
                    change(name)
                assert caught.value.code == "VHT-INPUT-PATIENT-ID"
                assert name not in caught.value.message
        with pytest.raises(NotFoundError) as unknown:
            node.opt_out("Patient/p1-mistyped")
        assert unknown.value.code == "VHT-INPUT-PATIENT"
    assert "optout.recorded" not in stocked.kinds()


def test_the_command_takes_a_reference_and_refuses_what_is_none(stocked: Hospital) -> None:
    assert vht_node("opt-out", stocked.state, "Patient/p1")["recorded"] is True
    assert vht_node("opt-out", stocked.state, "urn:uuid:p1", "--withdraw")["withdrawn"] is True
    for arguments in (("Group/p1",), ("Group/p1", "--ahead"), ("Group/p1", "--withdraw")):
        with pytest.raises(InputError) as caught:
            vht_node("opt-out", stocked.state, *arguments)
        assert caught.value.code == "VHT-INPUT-PATIENT-ID"


def test_the_registry_holds_no_identifier(stocked: Hospital) -> None:
    with stocked.open() as node:
        node.opt_out("patient-of-note", ahead=True)
        with node.database.read() as session:
            (row,) = session.query(OptOutRow).all()
        assert len(row.subject) == 64
    for path in stocked.state.rglob("*"):
        assert path.is_dir() or b"patient-of-note" not in path.read_bytes(), path.name


def test_cohorts_of_two_permits_number_the_same_patients_differently(stocked: Hospital) -> None:
    cohorts = []
    with stocked.open() as node:
        for number in (1, 2):
            permit = stocked.permit(permit_id=f"permit-{number}")
            visit = ask(node, stocked, permit, stocked.study(permit_id=f"permit-{number}"))
            assert approved(node, visit.id) == "ready"
            cohorts.append(load((node.files.cohort(visit.id) / "cohort.safetensors").read_bytes()))
    first, second = cohorts
    assert sorted(first["bucket"]) == sorted(second["bucket"])
    assert list(first["bucket"]) != list(second["bucket"])
    assert list(first["patient"]) == sorted(first["patient"])


def test_pseudonyms_hold_under_one_permit_only_and_end_with_its_key(database: Database) -> None:
    with database.write() as session:
        first, again = pseudonymiser(session, "p1", ISSUED), pseudonymiser(session, "p1", ISSUED)
        second = pseudonymiser(session, "p2", ISSUED)
        assert first("s") == again("s") != second("s")
        assert first("s") != first("t")
        erase(session, "p1", ISSUED)
        with pytest.raises(PermitError) as caught:
            pseudonymiser(session, "p1", ISSUED)
        assert caught.value.code == "VHT-PERMIT-ERASED"
        erase(session, "never used", ISSUED)
        with pytest.raises(PermitError):
            pseudonymiser(session, "never used", ISSUED)
