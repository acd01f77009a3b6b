"""What ends without anybody asking: visits, pseudonyms, and the log's patience with strangers."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from kit.hospital import Hospital, approved, ask, await_that
from kit.later_clock import Later

from connector.console.log_lines import log_lines
from connector.governance.refusal_quota import LOGGED
from connector.node import Node
from connector.store.models import PseudonymKeyRow
from vht_federate.errors import PermitError, RefusedError, VhtError
from vht_federate.evidence.node_log import read_node_log
from vht_federate.evidence.visit_record import visit_records
from vht_federate.signing.canonical import canonical_bytes, sha256_hex

DIGEST = "ab" * 32
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@contextmanager
def opened(hospital: Hospital, clock: Later, every_s: float = 3600.0) -> Iterator[Node]:
    with Node(hospital.state, clock=clock) as node:
        node.start(enclaves=hospital.enclaves, sweep_every_s=every_s)
        yield node


def _gone(hospital: Hospital, visit_id: str) -> None:
    await_that(lambda: visit_id in hospital.enclaves.stopped and not hospital.cohort_folders())


def test_while_all_is_well_a_sweep_changes_nothing(stocked: Hospital) -> None:
    with opened(stocked, Later()) as node:
        visit = ask(node, stocked)
        approved(node, visit.id)
        entries = len(node.evidence)
        node.expiry.sweep()
        assert (node.visits.get(visit.id).state, len(node.evidence)) == ("ready", entries)
        assert stocked.cohort_folders()


def test_an_expired_permit_ends_its_visits_and_the_cohort_goes(stocked: Hospital) -> None:
    clock = Later()
    with opened(stocked, clock) as node:
        permit = stocked.permit(expires_at=datetime.now(UTC) + HOUR)
        running, waiting = ask(node, stocked, permit), ask(node, stocked, permit)
        approved(node, running.id)
        clock.ahead = 2 * HOUR
        node.expiry.sweep()
        node.expiry.sweep()
        assert [(v.state, v.code) for v in node.visits.all()] == [("failed", "VHT-PERMIT-EXPIRED")] * 2
        _gone(stocked, running.id)
        assert waiting.id not in stocked.enclaves.started
        export = canonical_bytes(node.evidence.export("permit-1"))
        visit_records(read_node_log("nodes/h.json", export, "hospital-1", "permit-1", node.key.public))
    assert stocked.kinds().count("visit.closed") == 2


def test_a_revoked_permit_is_noticed_by_the_clock_alone(stocked: Hospital) -> None:
    stocked.permit(permit_id="permit-2")
    with opened(stocked, Later(), every_s=0.2) as node:
        visit = ask(node, stocked)
        other = ask(node, stocked, stocked.permit(permit_id="permit-2"), stocked.study(permit_id="permit-2"))
        approved(node, visit.id)
        stocked.issuer.revoke("permit-1")
        await_that(lambda: node.visits.get(visit.id).state == "revoked")
        _gone(stocked, visit.id)
        assert node.visits.get(other.id).state == "requested"
    assert stocked.kinds().count("permit.revoked-seen") == 1


def test_an_issuer_out_of_reach_ends_nothing(stocked: Hospital) -> None:
    with opened(stocked, Later()) as node:
        visit = ask(node, stocked)
        approved(node, visit.id)
        stocked.issuer.stop()
        node.expiry.sweep()
        assert node.visits.get(visit.id).state == "ready"


def test_a_visit_that_nobody_uses_ends_after_a_day_and_each_round_starts_the_day_anew(stocked: Hospital) -> None:
    clock = Later()
    with opened(stocked, clock) as node:
        visit = ask(node, stocked)
        waiting = ask(node, stocked)
        approved(node, visit.id)
        for ahead in (23 * HOUR, 46 * HOUR):
            stocked.issuer.skew = clock.ahead = ahead
            node.expiry.sweep()
            assert node.visits.get(visit.id).state == "ready"
            if ahead == 23 * HOUR:
                node.gate.begin(visit.id, "train", 1, DIGEST)
        clock.ahead = 23 * HOUR + DAY
        node.expiry.sweep()
        ended = node.visits.get(visit.id)
        assert (ended.state, ended.code) == ("failed", "VHT-UNAVAILABLE-IDLE")
        assert "24 hours" in ended.reason
        _gone(stocked, visit.id)
        assert node.visits.get(waiting.id).state == "requested"
        clock.ahead = 29 * DAY + 23 * HOUR  # the permit holds for 30 days
        node.expiry.sweep()
        assert node.visits.get(waiting.id).state == "requested"


def test_a_request_that_no_operator_answers_ends_after_a_month(stocked: Hospital) -> None:
    clock = Later()
    with opened(stocked, clock) as node:
        visit = ask(node, stocked, stocked.permit(expires_at=datetime.now(UTC) + 90 * DAY))
        clock.ahead = 30 * DAY
        node.expiry.sweep()
        assert node.visits.get(visit.id).code == "VHT-UNAVAILABLE-IDLE"


def test_pseudonyms_are_erased_when_the_retention_after_expiry_is_over(stocked: Hospital) -> None:
    clock = Later()
    with opened(stocked, clock) as node:
        permit = stocked.permit(retention_days_after_expiry=10)
        visit = ask(node, stocked, permit)
        approved(node, visit.id)
        for days, erased in ((31, False), (39, False), (41, True), (42, True)):
            clock.ahead = days * DAY
            node.expiry.sweep()
            with node.database.read() as session:
                row = session.get(PseudonymKeyRow, "permit-1")
                assert row is not None
                assert (row.key is None) is erased
        assert "retention" in log_lines(node.evidence, 1)[0][0]["sentence"]
        export = canonical_bytes(node.evidence.export("permit-1"))
        visit_records(read_node_log("nodes/h.json", export, "hospital-1", "permit-1", node.key.public))
    assert [e["body"]["permit_id"] for e in stocked.log() if e["kind"] == "pseudonyms.erased"] == ["permit-1"]


def test_one_part_that_fails_does_not_keep_the_others_from_running(
    stocked: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Later()
    with opened(stocked, clock, every_s=0.1) as node:
        visit = ask(node, stocked)
        approved(node, visit.id)

        def broken(*_: object) -> None:
            raise ValueError("broken")

        monkeypatch.setattr(node.expiry, "_erase_pseudonyms", broken)
        monkeypatch.setattr(node.expiry, "_last_use", broken)
        clock.ahead = 31 * DAY
        await_that(lambda: node.visits.get(visit.id).state == "failed")


def test_strangers_cannot_fill_the_log_and_are_answered_all_the_same(hospital: Hospital) -> None:
    clock = Later()
    with opened(hospital, clock) as node:
        key = hospital.user.public.jwk()
        before = len(node.evidence)
        for _ in range(LOGGED + 40):
            with pytest.raises(PermitError) as caught:
                node.visits.request("junk", "x", key)
            assert caught.value.code == "VHT-PERMIT-MALFORMED"
        published = hospital.permit(), hospital.study(created_at=datetime.now(UTC) - 2 * DAY)
        for _ in range(3):  # signed by a data user, and known to everybody
            with pytest.raises(RefusedError) as stale:
                node.visits.request(*published, key, proof=hospital.proof())
            assert stale.value.code == "VHT-REFUSED-STALE"
        assert len(node.evidence) == before + LOGGED
        study = hospital.study(columns=("age", "chest_pain"))
        with pytest.raises(VhtError):  # a data user who asks now is always logged
            node.visits.request(hospital.permit(), study, key, proof=hospital.proof())
        assert hospital.log()[-1]["body"]["code"] == "VHT-PERMIT-COLUMN"
        node.expiry.sweep()
        assert hospital.kinds().count("refusals.counted") == 0
        hospital.issuer.skew = clock.ahead = HOUR
        node.expiry.sweep()
        node.expiry.sweep()
        with pytest.raises(PermitError):
            node.visits.request("junk", "x", key)
        assert "43 more" in log_lines(node.evidence, 2)[0][1]["sentence"]
        visit = ask(node, hospital, study=hospital.study(created_at=clock()))
        export = canonical_bytes(node.evidence.export(visit.permit_id))
        visit_records(read_node_log("nodes/h.json", export, "hospital-1", visit.permit_id, node.key.public))
    (counted,) = [entry["body"] for entry in hospital.log() if entry["kind"] == "refusals.counted"]
    assert counted["codes"] == {"VHT-PERMIT-MALFORMED": 40, "VHT-REFUSED-STALE": 3}
    junk = hospital.log()[-3]["body"]
    assert (junk["code"], junk["permit_sha256"]) == ("VHT-PERMIT-MALFORMED", sha256_hex(b"junk"))


def test_a_node_that_stops_within_the_hour_tells_the_number_first(hospital: Hospital) -> None:
    with opened(hospital, Later()) as node:
        for _ in range(LOGGED + 1):
            with pytest.raises(PermitError):
                node.visits.request("junk", "x", {})
    assert hospital.log()[-1]["body"]["refused"] == 1
