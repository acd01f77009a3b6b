"""What a hospital refuses: each with its own code, in its log, and before any data is read."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kit.shared_federation import Ran

from vht_federate.client import Client
from vht_federate.domain.permit import PERMIT_TYP, Permit
from vht_federate.domain.study import STUDY_TYP, StudyRequest
from vht_federate.errors import VhtError
from vht_federate.signing.keys import SigningKey, unverified_claims
from vht_federate.signing.possession import prove

pytestmark = pytest.mark.federation


class Asking:
    """A data user who asks the first hospital of the shared federation for a visit."""

    def __init__(self, ran: Ran) -> None:
        self.federation = ran.federation
        self.hospital = self.federation.hospitals[0]
        self.study_folder = self.federation.root / "study"
        self.user = SigningKey.read(self.study_folder / "user.key")
        self.issuer = SigningKey.read(self.federation.root / "authority" / "issuer.key")
        plan = self.federation.commands.run("study", "plan", str(self.federation.study_file))
        self.permit = (self.study_folder / "permit.jwt").read_text().strip()
        self.coordinator = SigningKey.generate()
        component = self.federation.commands.run("component", "show", "cardio-risk")
        profile = component["profiles"]["cardiometabolic"]
        self.request: dict[str, Any] = {
            "study_id": "asking",
            "title": "asking",
            "created_at": datetime.now(UTC).isoformat(),
            "permit_id": unverified_claims(self.permit)["permit_id"],
            "user_kid": self.user.public.kid,
            "purpose": "53.1.e.ii",
            "categories": ["51.1.a"],
            "dataset_ids": [self.hospital.dataset],
            "component": {
                "name": "cardio-risk",
                "version": component["version"],
                "digest": component["digest"],
                "profile": "cardiometabolic",
            },
            "columns": [*profile["inputs"], profile["outcome"]],
            "plan": {**plan["plan"], "cohort": None},
            "codebook": None,
            "coordinator_key": self.coordinator.public.jwk(),
        }

    def foreign_permit(self, key: SigningKey, **changes: Any) -> str:
        """The permit with other fields, signed by ``key``."""
        claims = Permit.from_claims({**unverified_claims(self.permit), **changes}).claims()
        return key.sign(claims, typ=PERMIT_TYP)

    def ask(self, permit: str | None = None, key: SigningKey | None = None, **changes: Any) -> str:
        """The code of the refusal, or "" where the visit was accepted."""
        permit, user = permit or self.permit, key or self.user
        claims = {**self.request, "permit_id": unverified_claims(permit)["permit_id"], **changes}
        study = user.sign(StudyRequest.from_claims(claims).claims(), typ=STUDY_TYP)
        body = {"permit": permit, "study": study, "user_key": user.public.jwk()}

        def proof(method: str, url: str) -> str:
            return prove(self.coordinator, method, url, recipient=self.hospital.dataset, now=datetime.now(UTC))

        with Client(self.federation.url(self.hospital.name), self.federation.ca, prove=proof) as client:
            try:
                client.post("/visits", json=body)
            except VhtError as error:
                return error.code
        return ""

    def log(self) -> list[dict[str, Any]]:
        path = self.federation.node_state(self.hospital.name) / "evidence" / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def cohorts(self) -> set[Path]:
        """Visit folders of the node: a cohort is the first thing that reading data would leave."""
        return set(self.federation.node_state(self.hospital.name).glob("visits/*"))


@pytest.fixture(scope="module")
def asking(ran: Ran) -> Asking:
    return Asking(ran)


def _expired() -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "permit_id": "expired-permit",
        "issued_at": (now - timedelta(days=20)).isoformat(),
        "not_before": (now - timedelta(days=20)).isoformat(),
        "expires_at": (now - timedelta(days=1)).isoformat(),
    }


def _private_actor(asking: Asking) -> dict[str, Any]:
    user = {"name": "A company", "kind": "private", "kid": asking.user.public.kid}
    return {"permit_id": "private-permit", "purposes": ["53.1.a"], "data_users": [user]}


def _refusals(asking: Asking) -> dict[str, tuple[str, dict[str, Any]]]:
    component = {**asking.request["component"], "digest": "0" * 64}
    plan = asking.request["plan"]
    loud = {**plan, "training": {**plan["training"], "noise_multiplier": 0.4}}
    stranger = SigningKey.generate()
    return {
        "a component whose digest the permit does not name": ("VHT-PERMIT-COMPONENT", {"component": component}),
        "a private actor with a public body's purpose": (
            "VHT-PERMIT-PURPOSE",
            {"permit": asking.foreign_permit(asking.issuer, **_private_actor(asking)), "purpose": "53.1.a"},
        ),
        "a purpose that the permit does not name": ("VHT-PERMIT-PURPOSE", {"purpose": "53.1.d"}),
        "an expired permit": ("VHT-PERMIT-EXPIRED", {"permit": asking.foreign_permit(asking.issuer, **_expired())}),
        "a permit signed by a stranger": ("VHT-PERMIT-ISSUER", {"permit": asking.foreign_permit(stranger)}),
        "a forged permit": ("VHT-PERMIT-SIGNATURE", {"permit": _flipped(asking.permit)}),
        "a data user whom the permit does not name": (
            "VHT-PERMIT-USER",
            {"key": stranger, "user_kid": stranger.public.kid},
        ),
        "a category outside the permit": ("VHT-PERMIT-CATEGORY", {"categories": ["51.1.f"]}),
        "a column outside the permit": (
            "VHT-PERMIT-COLUMN",
            {"columns": [*asking.request["columns"], "chest_pain"]},
        ),
        "a dataset of somebody else": ("VHT-PERMIT-DATASET", {"dataset_ids": ["urn:vht:elsewhere:ehr"]}),
        "a plan that costs more than the permit": ("VHT-BUDGET-PERMIT", {"plan": loud}),
    }


def _flipped(token: str) -> str:
    head, body, signature = token.split(".")
    middle = len(signature) // 2
    other = "A" if signature[middle] != "A" else "B"
    return f"{head}.{body}.{signature[:middle]}{other}{signature[middle + 1 :]}"


def test_each_refusal_has_its_own_code_is_logged_and_reads_no_data(asking: Asking) -> None:
    for what, (code, changes) in _refusals(asking).items():
        entries, folders = len(asking.log()), asking.cohorts()
        assert asking.ask(**changes) == code, what
        fresh = asking.log()[entries:]
        assert any(entry["body"].get("code") == code for entry in fresh), what
        assert not [entry for entry in fresh if entry["kind"] in ("cohort.built", "budget.reserved")], what
        assert asking.cohorts() == folders, what


def test_a_revoked_permit_is_refused_from_then_on(asking: Asking) -> None:
    permit_id = asking.federation.issue_permit("to-revoke")
    token = (asking.study_folder / "to-revoke.jwt").read_text().strip()
    state = str(asking.federation.root / "authority")
    asking.federation.commands.run("permit", "revoke", "--state", state, permit_id)
    assert asking.ask(permit=token) == "VHT-PERMIT-REVOKED"


def test_a_budget_over_the_nodes_cap_is_refused_at_approval_and_nothing_is_reserved(asking: Asking) -> None:
    """The permit allows it; the hospital's own cap, after what was spent before, does not."""
    federation, name = asking.federation, asking.hospital.name
    permit_id = federation.issue_permit("greedy", epsilon=50.0)
    plan = asking.request["plan"]
    greedy = {**plan, "training": {**plan["training"], "noise_multiplier": 1.5}}
    token = (asking.study_folder / "greedy.jwt").read_text().strip()
    before = federation.ledgers()[name]
    code = asking.ask(permit=token, plan=greedy, study_id="greedy")
    if code == "":
        with pytest.raises(VhtError) as caught:
            federation.approve_visits("greedy", names=[name])
        code = caught.value.code
    assert code == "VHT-BUDGET-CAP"
    assert federation.ledgers()[name] == before
    assert any(e["body"].get("code") == "VHT-BUDGET-CAP" and e["permit_id"] == permit_id for e in asking.log())


def test_the_outward_listener_does_not_know_the_operators_routes(asking: Asking) -> None:
    with Client(asking.federation.url(asking.hospital.name), asking.federation.ca) as client:
        for path in ("/api/status", "/api/visits", "/login", "/log"):
            with pytest.raises(VhtError) as caught:
                client.get(path)
            assert caught.value.code == "VHT-INPUT-NOT-FOUND"
