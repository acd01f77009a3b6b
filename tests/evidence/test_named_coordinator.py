"""A study names its coordinator's key: every visit was opened for the holder of that key, or the evidence says not."""

from pathlib import Path
from typing import Any

import pytest
from kit.rehearsed_runs import NAMES, NODE, PLAN, code_of, finish, prepared, rehearsal

from vht_federate.domain.study import StudyRequest
from vht_federate.errors import InputError
from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.verify import verify_bundle
from vht_federate.signing.keys import SigningKey, unverified_claims
from vht_federate.testing.rehearsal import Rehearsal


class OpenedForAnother(Rehearsal):
    """One node logs that another key was proved, or none."""

    kid: str | None = None

    def log(self, name: str, kind: str, body: dict[str, Any]) -> LogEntry:
        if kind == "visit.requested" and name == NODE:
            body = {**body, "coordinator_kid": self.kid}
        return super().log(name, kind, body)


@pytest.mark.parametrize("kid", [SigningKey.generate().public.kid, None], ids=["another", "none"])
def test_a_visit_that_was_opened_for_another_is_named(kid: str | None, tmp_path: Path) -> None:
    with OpenedForAnother(tmp_path, names=NAMES, plan=PLAN) as study:
        study.kid = kid
        study.play()
        assert code_of(study, tmp_path / "bundle", "opened for another than the coordinator") == "VHT-VERIFY-RUN"


def test_a_visit_that_was_opened_for_the_coordinator_verifies(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        verified = verify_bundle(finish(study).bundle(tmp_path / "bundle"), study.trust)
    assert verified.study.coordinator == study.coordinator.public


def test_the_evidence_of_a_study_that_names_no_coordinator_verifies_as_before(tmp_path: Path) -> None:
    with rehearsal(tmp_path, names_coordinator=False) as study:
        bundle = study.play().bundle(tmp_path / "bundle")
        verified = verify_bundle(bundle, study.trust)
    claims = unverified_claims((bundle / "study.jws").read_text().strip())
    assert "coordinator_key" not in claims
    assert StudyRequest.from_claims(claims).claims() == claims, "so that its digest is that of the logs"
    assert verified.study.coordinator is None


@pytest.mark.parametrize(
    "key", [{}, {"kty": "EC", "crv": "P-256", "x": "AA"}, {"kty": "OKP", "crv": "Ed25519", "x": "!"}]
)
def test_what_is_no_key_names_no_coordinator(key: dict[str, str], tmp_path: Path) -> None:
    with rehearsal(tmp_path) as study, pytest.raises(InputError, match="coordinator_key") as caught:
        StudyRequest.from_claims({**study.request.claims(), "coordinator_key": key})
    assert caught.value.code == "VHT-INPUT-STUDY"
