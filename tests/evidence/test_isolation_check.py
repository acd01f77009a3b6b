"""An enclave that was less than a sandbox is named by the verifier, and refused where the permit demands more."""

from pathlib import Path

import pytest
from kit.hostile_table import Answered
from kit.rehearsed_runs import NAMES, code_of, finish, prepared

from vht_federate.domain.permit import Permit
from vht_federate.evidence import isolation_check
from vht_federate.evidence.verify import verify_bundle

WEAKER = ["system-calls", "audit-hook", "network-namespace+audit-hook", "none", None]


@pytest.mark.parametrize("isolation", WEAKER)
def test_a_weaker_enclave_is_named_with_its_node(tmp_path: Path, isolation: str | None) -> None:
    with finish(prepared(tmp_path / "run", isolation=isolation)) as played:
        verification = verify_bundle(played.bundle(tmp_path / "bundle"), played.trust)
    assert [note.split(":")[0] for note in verification.notes] == list(NAMES)
    assert all((isolation or "not said") in note and "no sandbox" in note for note in verification.notes)


def test_a_sandbox_needs_no_word(tmp_path: Path) -> None:
    with finish(prepared(tmp_path / "run", permit_fields={"enclave_isolation": "sandbox"})) as played:
        assert verify_bundle(played.bundle(tmp_path / "bundle"), played.trust).notes == ()


@pytest.mark.hostile("verified-level")
@pytest.mark.parametrize(
    ("demanded", "isolation"), [*(("sandbox", word) for word in WEAKER), ("system-calls", "audit-hook")]
)
def test_an_enclave_below_what_the_permit_demands_is_refused(
    tmp_path: Path, demanded: str, isolation: str | None, answered: Answered
) -> None:
    permit_fields = {"enclave_isolation": demanded}
    with finish(prepared(tmp_path / "run", isolation=isolation, permit_fields=permit_fields)) as played:
        assert code_of(played, tmp_path / "bundle", f"the permit demands {demanded}") == "VHT-VERIFY-ISOLATION"
    answered("VHT-VERIFY-ISOLATION")


@pytest.mark.hostile("verified-level", control=True)
def test_control_a_verifier_that_does_not_ask_lets_it_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation_check, "check_isolation", lambda *_: None)
    demand = {"enclave_isolation": "sandbox"}
    with finish(prepared(tmp_path / "run", isolation="audit-hook", permit_fields=demand)) as played:
        assert verify_bundle(played.bundle(tmp_path / "bundle"), played.trust).checks


def test_a_permit_without_a_demand_says_nothing_of_it_as_before(tmp_path: Path) -> None:
    """Its claims are those of earlier versions: nodes and auditors of either version read the other's permits."""
    with prepared(tmp_path / "run") as played:
        claims = played.permit.claims()
        assert "enclave_isolation" not in claims
        assert Permit.from_claims(claims) == played.permit
    with prepared(tmp_path / "demanding", permit_fields={"enclave_isolation": "sandbox"}) as played:
        assert played.permit.claims()["enclave_isolation"] == "sandbox"
        assert Permit.from_claims(played.permit.claims()) == played.permit
