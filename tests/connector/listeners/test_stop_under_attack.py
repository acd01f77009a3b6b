"""An operator stops a visit over the internal API while somebody attacks the node, and the attack still goes on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.commands import vht_node
from kit.hospital import Hospital, await_that, make_hospital, write_fhir
from kit.hostile_table import Answered
from kit.node_attacks import ATTACKS, attacked
from kit.served_node import Served

SEEN = {  # what the node says of an attack, in its evidence log
    "plans": "VHT-BUDGET-COSTLY",
    "replay": "VHT-BUDGET-QUESTION",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    hospital = make_hospital(tmp_path_factory.mktemp("attacked"))
    vht_node("ingest", hospital.state, write_fhir(hospital.root / "fhir"))
    with hospital.open(start=False) as node:
        node.accounts.add("Dr Ada", "approver", "correct horse")
    served_node = Served(hospital)
    served_node.await_health()
    yield served_node
    served_node.process.kill()
    served_node.process.communicate()
    hospital.issuer.stop()


def _requested(served: Served, study: str) -> dict[str, Any]:
    hospital: Hospital = served.hospital
    body = {
        "permit": hospital.permit(),
        "study": hospital.study(study_id=study),
        "user_key": hospital.user.public.jwk(),
    }
    with served.coordinator() as client:
        return dict(client.post("/visits", json=body))


def _enclave_of(served: Served, visit: dict[str, Any]) -> Path:
    """Of the visit, approved and ready."""
    state = served.hospital.state
    vht_node("approve", state, visit["visit"], "--operator", "Dr Ada")
    with served.coordinator(visit["token"]) as client:
        path = f"/visits/{visit['visit']}"
        await_that(lambda: client.get(path)["state"] != "approved")
        assert client.get(path)["state"] == "ready"
    return Path((state / "run_dir").read_text().strip()) / f"{visit['visit']}.sock"


@pytest.mark.hostile("stop")
@pytest.mark.parametrize("name", ATTACKS)
def test_a_stop_completes_while_the_attack_goes_on(name: str, served: Served, answered: Answered) -> None:
    visit = _requested(served, f"study-{name}")
    enclave = _enclave_of(served, visit) if name == "silent" else None
    state = "halted" if enclave else "rejected"  # the others were not approved yet
    with attacked(served, name, enclave) as attack:
        with served.client(internal=True) as operator:
            stopped = operator.post(f"/api/visits/{visit['visit']}/stop", json={"operator": "Dr Ada"})
            assert operator.get(f"/api/visits/{visit['visit']}")["state"] == state
        assert (stopped["state"], stopped["code"]) == (state, "VHT-REFUSED-STOPPED")
        assert attack.goes_on()
    answered("the stop completes")
    checked = [entry["body"].get("code") for entry in served.hospital.log() if entry["kind"] == "permit.checked"]
    if name == "replay":
        assert checked.count(SEEN[name]) == 1
    elif name in SEEN:
        assert SEEN[name] in checked
