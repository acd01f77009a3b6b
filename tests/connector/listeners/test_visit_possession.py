"""One invited hospital tries to take another's visit: it holds the permit, the signed study, and what it was sent."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kit.hospital import DATASET, Hospital
from kit.hostile_table import Answered

from connector.governance.seen_proofs import MOST_OF_A_KEY, SeenProofs
from connector.governance.study_admission import StudyAdmission
from connector.listeners.outward import outward_app
from connector.node import Node
from connector.store.models import VisitRow
from vht_federate.errors import RefusedError
from vht_federate.signing.keys import SigningKey
from vht_federate.signing.possession import LIFETIME
from vht_federate.testing.asgi import AppClient

AT_ANOTHER = "urn:vht:another-hospital:ehr"
ROUTES = [
    ("GET", "", None),
    ("GET", "/evidence", None),
    ("POST", "/close", {}),
    ("POST", "/releases", {"kind": "component", "sha256": "ab" * 32}),
]


class Asked:
    """A node, and the papers that every hospital of the study was sent."""

    def __init__(self, node: Node, hospital: Hospital) -> None:
        self.node, self.hospital = node, hospital
        self.out = AppClient(outward_app(node), raise_app_exceptions=False)
        self.papers = {
            "permit": hospital.permit(),
            "study": hospital.study(),
            "user_key": hospital.user.public.jwk(),
        }

    def present(self, proof: str | None, **headers: str) -> Any:
        if proof is not None:
            headers["DPoP"] = proof
        return self.out.post("/visits", json=self.papers, headers=headers)

    def code(self, answer: Any) -> str:
        return str(answer.json()["error"]["code"])


@pytest.fixture
def asked(hospital: Hospital) -> Iterator[Asked]:
    with hospital.open() as node:
        yield Asked(node, hospital)


@pytest.mark.hostile("visit")
def test_who_does_not_hold_the_coordinators_key_gets_no_visit_and_blocks_none(asked: Asked, answered: Answered) -> None:
    hospital, thief = asked.hospital, SigningKey.generate()
    attempts = [
        asked.present(None),
        asked.present("nonsense"),
        asked.present(hospital.proof(key=thief).proof),
        asked.present(hospital.proof(recipient=AT_ANOTHER).proof),  # what the coordinator sent to the thief
        asked.present(hospital.proof(path="/feasibility").proof),
        asked.present(hospital.proof(now=datetime.now(UTC) - 2 * LIFETIME).proof),
    ]
    assert [(answer.status_code, asked.code(answer)) for answer in attempts] == [(403, "VHT-REFUSED-PROOF")] * 6
    answered("VHT-REFUSED-PROOF")
    assert not any("token" in answer.json() for answer in attempts)
    assert asked.node.visits.all() == []
    assert {entry["body"]["code"] for entry in hospital.log() if entry["kind"] == "permit.checked"} == {
        "VHT-REFUSED-PROOF"
    }
    presented = asked.present(hospital.proof().proof)
    assert presented.status_code == 201, "the study is not blocked"
    assert presented.json()["token_type"] == "DPoP"
    (requested,) = [entry["body"] for entry in hospital.log() if entry["kind"] == "visit.requested"]
    assert requested["coordinator_kid"] == hospital.coordinator.public.kid


@pytest.mark.hostile("visit-token", control=True)
@pytest.mark.hostile("visit", control=True)
def test_without_that_wall_the_thief_gets_the_token_and_the_evidence(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the node believes whoever comes."""
    monkeypatch.setattr(StudyAdmission, "require_holder", lambda *_: None)
    stolen = asked.present(None)
    assert stolen.status_code == 201
    headers = {"Authorization": f"Bearer {stolen.json()['token']}"}
    assert (
        asked.out.get(f"/visits/{stolen.json()['visit']}/evidence", headers=headers).json()["permit_id"] == "permit-1"
    )
    assert asked.code(asked.present(asked.hospital.proof().proof)) == "VHT-REFUSED-DUPLICATE", "and blocks the study"


def test_a_proof_opens_one_visit_once(asked: Asked) -> None:
    proof = asked.hospital.proof().proof
    first = asked.present(proof, **{"Idempotency-Key": "k"})
    assert first.status_code == 201
    copied = asked.present(proof, **{"Idempotency-Key": "k"})
    assert (copied.status_code, asked.code(copied)) == (403, "VHT-REFUSED-PROOF")
    again = asked.present(asked.hospital.proof().proof, **{"Idempotency-Key": "k"})
    assert again.json() == first.json()


@pytest.mark.hostile("visit-token")
@pytest.mark.parametrize(("method", "rest", "body"), ROUTES)
def test_a_visits_token_alone_is_of_no_use(asked: Asked, method: str, rest: str, body: Any, answered: Answered) -> None:
    hospital, visit = asked.hospital, asked.present(asked.hospital.proof().proof).json()
    path, token = f"/visits/{visit['visit']}{rest}", visit["token"]
    thief = SigningKey.generate()
    proofs = {
        "none": "",
        "the thief's": hospital.proof(method, path, token=token, key=thief).proof,
        "for another node": hospital.proof(method, path, token=token, recipient=AT_ANOTHER).proof,
        "for another token": hospital.proof(method, path, token="t").proof,
        "for no token": hospital.proof(method, path).proof,
        "for another visit": hospital.proof(method, "/visits/v-0", token=token).proof,
        "for another method": hospital.proof("PUT", path, token=token).proof,
    }
    for scheme in ("Bearer", "DPoP"):
        for name, proof in proofs.items():
            headers = {"Authorization": f"{scheme} {token}"} | ({"DPoP": proof} if proof else {})
            answer = asked.out.request(method, path, headers=headers, json=body)
            assert (answer.status_code, asked.code(answer)) == (403, "VHT-REFUSED-PROOF"), name
    answered("VHT-REFUSED-PROOF")
    assert asked.node.visits.get(visit["visit"]).state == "requested"
    right = hospital.headers(method, path, token)
    assert asked.out.request(method, path, headers=right, json=body).status_code in (200, 403)
    repeated = asked.out.request(method, path, headers=right, json=body)
    assert asked.code(repeated) == "VHT-REFUSED-PROOF"
    assert "used before" in repeated.text


def test_a_study_that_names_no_coordinator_is_refused(asked: Asked) -> None:
    asked.papers["study"] = asked.hospital.study(coordinator_key=None)
    answer = asked.present(asked.hospital.proof().proof)
    assert (answer.status_code, asked.code(answer)) == (403, "VHT-REFUSED-COORDINATOR")
    assert asked.node.visits.all() == []


def test_a_visit_that_an_earlier_version_entered_is_open_to_its_token(asked: Asked) -> None:
    visit = asked.present(asked.hospital.proof().proof).json()
    with asked.node.database.write() as session:
        row = session.get(VisitRow, visit["visit"])
        assert row is not None
        row.request = asked.hospital.study(coordinator_key=None)
    headers = {"Authorization": f"Bearer {visit['token']}"}
    assert asked.out.get(f"/visits/{visit['visit']}", headers=headers).json()["state"] == "requested"
    assert asked.out.get(f"/visits/{visit['visit']}").status_code == 404


def test_proofs_are_remembered_for_as_long_as_they_live_and_no_longer() -> None:
    seen, now = SeenProofs(), datetime(2030, 5, 1, tzinfo=UTC)
    seen.use("kid", "one", now)
    seen.use("another kid", "one", now)
    last = now + 2 * LIFETIME - timedelta(seconds=1)
    with pytest.raises(RefusedError, match="used before"):
        seen.use("kid", "one", last)
    seen.use("kid", "one", now + 2 * LIFETIME)


def test_one_key_fills_the_memory_of_proofs_for_itself_alone() -> None:
    seen, now = SeenProofs(), datetime(2030, 5, 1, tzinfo=UTC)
    for number in range(MOST_OF_A_KEY):
        seen.use("busy", str(number), now)
    with pytest.raises(RefusedError) as caught:
        seen.use("busy", "one more", now)
    assert caught.value.code == "VHT-REFUSED-RATE"
    seen.use("calm", "one", now)


def test_the_recipient_is_the_dataset_that_the_permit_names(asked: Asked) -> None:
    assert asked.present(asked.hospital.proof().proof).json()["dataset"] == DATASET
