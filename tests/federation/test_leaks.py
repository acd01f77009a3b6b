"""Canaries stand in names, ids, addresses, dates and free text of every patient: none may leave a hospital."""

import base64
import gzip
import ssl
from pathlib import Path

import httpx
import pytest
from kit.shared_federation import Ran
from kit.tls_wiretap import found_in

from connector.console.page_frame import _NAV

pytestmark = pytest.mark.federation

PAGES = tuple(path for path, _ in _NAV)  # all that the console's menu leads to


def _files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]


def _trusting(ran: Ran) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ran.federation.ca))


def test_every_patient_carries_canaries_in_the_hospitals_own_files(ran: Ran) -> None:
    """The search below would be empty talk on data without canaries."""
    for hospital in ran.federation.hospitals:
        patients = (hospital.folder / "Patient.ndjson").read_bytes().splitlines()
        assert len(patients) > 50
        assert all(found_in(line, ran.canaries, depth=0) for line in patients)


def test_every_connection_of_a_hospital_was_on_record(ran: Ran) -> None:
    names = {name.rsplit("-", 1)[0] for name, data in ran.wiretap.captured() if data}
    assert {"authority", "coordinator", *[h.name for h in ran.federation.hospitals]} <= names
    fleet = b"".join(data for name, data in ran.wiretap.captured() if name.startswith("coordinator"))
    assert b"/v1/fleet" in fleet or b"fleet" in fleet
    assert len(fleet) > 10_000


def test_a_hospital_connects_to_nothing_that_is_not_on_record(ran: Ran) -> None:
    """All its processes, from their start to the run's end: recorded ports, and what it serves to itself."""
    issuer, coordinator = ran.wiretap.taps("authority"), ran.wiretap.taps("coordinator")
    assert issuer
    assert coordinator
    assert ran.outgoing.samples > 20
    assert set(ran.outgoing.seen) == {hospital.name for hospital in ran.federation.hospitals}
    for name, connections in ran.outgoing.seen.items():
        assert connections.strays(issuer | coordinator) == set(), name
        assert connections.ports() & coordinator, f"{name} was never seen to connect to its coordinator"


def test_no_canary_crosses_a_connection(ran: Ran) -> None:
    for name, data in ran.wiretap.captured():
        assert found_in(data, ran.canaries) == set(), name


def test_no_canary_is_in_any_log_state_or_artefact_outside_the_source_files(ran: Ran) -> None:
    """The FHIR store, ledgers, evidence, logs, the coordinator, the platform, the run: everything but ``data``."""
    root = ran.federation.root
    places = [root / name for name in ("nodes", "logs", "coordinator", "authority", "platform", "run", "study")]
    for path in _files(*places):
        assert found_in(path.read_bytes(), ran.canaries, depth=2) == set(), path.relative_to(root)


def test_no_canary_is_on_any_page_or_in_any_error(ran: Ran) -> None:
    federation = ran.federation
    answers: list[tuple[str, bytes]] = []
    for hospital in federation.hospitals:
        with federation.operator(hospital.name) as client:
            visits = client.get("/api/visits")["visits"]
            paths = [*PAGES, *[f"/visits/{visit['visit']}" for visit in visits]]
            pages = {path: client.request("GET", path).content for path in [*paths, "/api/status"]}
        assert all(b"</html>" in pages[path] for path in paths)
        answers += [(f"{hospital.name}{path}", content) for path, content in pages.items()]
        with httpx.Client(base_url=federation.url(hospital.name), verify=_trusting(ran), trust_env=False) as out:
            for path in ("/catalogue", "/identity", "/visits/nobody", "/nothing"):
                answers.append((f"{hospital.name}{path}", out.get(path).content))
            answers.append(("malformed", out.post("/visits", json={"permit": "x", "study": {"a": 1}}).content))
    assert len(answers) >= 10 * len(federation.hospitals)
    for place, content in answers:
        assert found_in(content, ran.canaries) == set(), place


def test_a_planted_leak_is_caught_by_the_same_search(ran: Ran) -> None:
    """A hospital that sends one identifier, compressed and encoded, over one of its recorded connections."""
    canary = sorted(ran.canaries)[len(ran.canaries) // 2]
    federation = ran.federation
    port = ran.wiretap.route("authority", federation.ports["authority"])
    leak = base64.b64encode(gzip.compress(b"family name: " + canary))
    with httpx.Client(verify=_trusting(ran), trust_env=False) as client:
        client.post(f"https://127.0.0.1:{port}/leak", content=leak)
    caught = [name for name, data in ran.wiretap.captured() if found_in(data, [canary])]
    assert len(caught) == 1
    (ran.wiretap.captures / caught[0]).unlink()
