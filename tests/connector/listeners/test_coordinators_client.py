"""The coordinator's own client against a served node, over TLS: every request carries its proof."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit.hospital import DATASET, Hospital
from kit.served_node import Served

from strategies.known_heads import KnownHeads
from strategies.node_visits import Visits
from vht_federate.client import Client
from vht_federate.domain.study import NodeRef
from vht_federate.errors import NotFoundError, RefusedError
from vht_federate.signing.keys import SigningKey


@pytest.fixture
def served(hospital: Hospital) -> Iterator[Served]:
    served_node = Served(hospital)
    served_node.await_health()
    yield served_node
    if served_node.process.poll() is None:
        served_node.end()


@pytest.mark.faults
def test_a_visit_from_request_to_evidence_and_nothing_for_whoever_copied_its_file(
    served: Served, tmp_path: Path
) -> None:
    hospital, url = served.hospital, served.settings.outward_url
    nodes = [NodeRef(name="hospital-1", url=url, dataset=DATASET)]
    body = {"permit": hospital.permit(), "study": hospital.study(), "user_key": hospital.user.public.jwk()}
    folder = tmp_path / "run"
    folder.mkdir()
    heads = KnownHeads(tmp_path / "coordinator")
    thief = Visits(served.settings.ca, {}, heads, SigningKey.generate())
    assert thief.request(nodes, body, folder)["hospital-1"].code == "VHT-REFUSED-PROOF"
    visits = Visits(served.settings.ca, {}, heads, hospital.coordinator)
    assert visits.request(nodes, body, folder) == {}
    assert visits.state("hospital-1")["state"] == "requested"
    reopened = Visits.read(folder, served.settings.ca, heads, hospital.coordinator)
    assert reopened.by_node == visits.by_node
    assert reopened.state("hospital-1")["state"] == "requested"
    for key in (None, SigningKey.generate()):
        with pytest.raises(RefusedError) as caught:
            replace(reopened, key=key).state("hospital-1")
        assert caught.value.code == "VHT-REFUSED-PROOF"
    with pytest.raises(NotFoundError), Client(url, served.settings.ca) as client:
        client.get(f"/visits/{visits.by_node['hospital-1'].visit}")
    assert reopened.close("hospital-1", "done")
    assert reopened.evidence("hospital-1")["permit_id"] == "permit-1"
