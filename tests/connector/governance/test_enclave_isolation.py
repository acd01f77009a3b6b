"""What a node requires of its enclaves and a permit demands of them, asked before a visit, and told afterwards."""

from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from kit.commands import vht_node
from kit.hospital import Hospital, approved, ask
from kit.hostile_table import Answered
from kit.installed_intruder import register_job

from connector.enclave.isolation_probe import OfferedIsolation, offered_isolation
from connector.enclave.job_registry import GROUP
from connector.governance import study_admission
from connector.node import Node
from vht_federate.domain.isolation import IsolationLevel
from vht_federate.errors import ComponentError, PermitError, RefusedError

WEAK = OfferedIsolation(IsolationLevel.SYSTEM_CALLS, ("seccomp", "audit-hook"), ("no view of files",))
FULL = OfferedIsolation(IsolationLevel.SANDBOX, ("landlock-7", "seccomp", "audit-hook"), ())


def on_machine(node: Node, offered: OfferedIsolation, required: IsolationLevel) -> None:
    node.visits.admission = replace(node.visits.admission, offered=lambda: offered, isolation=required)


@pytest.mark.hostile("permit-level")
def test_a_permit_that_demands_more_than_the_machine_gives_is_refused_and_logged(
    stocked: Hospital, answered: Answered
) -> None:
    with stocked.open() as node:
        on_machine(node, WEAK, IsolationLevel.AUDIT_HOOK)
        permit = stocked.permit(enclave_isolation="sandbox")
        with pytest.raises(PermitError) as caught:
            ask(node, stocked, permit=permit)
        assert caught.value.code == "VHT-PERMIT-ISOLATION"
        answered(caught.value.code)
        assert stocked.log()[-1]["body"]["code"] == "VHT-PERMIT-ISOLATION"
        on_machine(node, FULL, IsolationLevel.AUDIT_HOOK)
        visit = ask(node, stocked, permit=permit)  # control: the same study, where the machine gives it
        assert approved(node, visit.id) == "ready"
    assert stocked.enclaves.started[visit.id][0].isolation is IsolationLevel.SANDBOX


@pytest.mark.hostile("node-level", control=True)
@pytest.mark.hostile("node-level")
def test_a_node_whose_machine_gives_less_than_it_requires_takes_no_study(stocked: Hospital, answered: Answered) -> None:
    with stocked.open() as node:
        on_machine(node, WEAK, IsolationLevel.SANDBOX)
        with pytest.raises(RefusedError) as caught:
            ask(node, stocked)
        assert caught.value.code == "VHT-REFUSED-ISOLATION"
        answered(caught.value.code)
        on_machine(node, WEAK, IsolationLevel.SYSTEM_CALLS)  # the control: its operator set a weaker level
        visit = ask(node, stocked)
        assert approved(node, visit.id) == "ready"
    assert stocked.enclaves.started[visit.id][0].isolation is IsolationLevel.SYSTEM_CALLS


@pytest.mark.hostile("jobs")
def test_a_second_package_with_a_job_of_the_plan_is_refused_before_anybody_approves(
    stocked: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: Answered
) -> None:
    with stocked.open() as node:
        monkeypatch.syspath_prepend(register_job(tmp_path / "site", "train"))
        with pytest.raises(ComponentError) as caught:
            ask(node, stocked)
        monkeypatch.undo()
        assert approved(node, ask(node, stocked).id) == "ready"  # control: without the package
    assert caught.value.code == "VHT-COMPONENT-JOB-TWICE"
    answered(caught.value.code)
    assert "VHT-COMPONENT-JOB-TWICE" in {entry["body"].get("code") for entry in stocked.log()}


@pytest.mark.hostile("jobs", control=True)
def test_control_whoever_takes_the_first_of_two_takes_the_intruders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a reader does that asks for no second one."""
    monkeypatch.syspath_prepend(register_job(tmp_path / "site", "train"))
    first = next(point for point in entry_points(group=GROUP) if point.name == "train")
    assert first.value == "intruder:steal"


@pytest.mark.hostile("permit-level", control=True)
def test_control_a_node_that_does_not_ask_starts_what_the_permit_does_not_allow(
    stocked: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_admission, "check_isolation", lambda *_: None)
    with stocked.open() as node:
        on_machine(node, WEAK, IsolationLevel.SYSTEM_CALLS)
        visit = ask(node, stocked, permit=stocked.permit(enclave_isolation="sandbox"))
        assert approved(node, visit.id) == "ready"  # on paper: what starts a real enclave asks once more


def test_the_log_says_how_the_enclave_was_closed_off_and_whose_jobs_it_ran(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        assert approved(node, visit.id) == "ready"
    (started,) = [entry["body"] for entry in stocked.log() if entry["kind"] == "enclave.started"]
    assert (started["isolation"], started["walls"], started["jobs"]) == ("audit-hook", ["paper"], {})


def test_a_node_requires_a_sandbox_unless_its_operator_says_otherwise() -> None:
    from connector.settings import NodeSettings

    assert NodeSettings.model_fields["enclave_isolation"].default is IsolationLevel.SANDBOX


def test_status_says_what_is_required_and_what_the_machine_gives(stocked: Hospital) -> None:
    with stocked.open() as node:
        isolation = node.status()["isolation"]
    assert isolation == {"required": "audit-hook", **offered_isolation().as_dict()}


def test_status_of_a_node_that_does_not_run_says_the_same(hospital: Hospital) -> None:
    assert vht_node("status", hospital.state)["isolation"] == {
        "required": "audit-hook",
        **offered_isolation().as_dict(),
    }
    assert vht_node("isolation") == offered_isolation().as_dict()
