"""How long an operator's stop takes while somebody attacks the node: the slowest under all of ``kit.node_attacks``.

A node of forty patients serves as ``vht node serve`` does; each attack comes from a process of its own and goes on
until the stop has been answered. The peer is the same stop at a node that nobody attacks.
"""

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.table import Row

__all__ = ["measure"]

STOPS = 3  # under each attack; the slowest counts
sys.path.append(str(Path(__file__).parents[1] / "tests"))  # where the served node and its attackers are


def measure() -> list[Row]:
    from kit.commands import vht_node
    from kit.hospital import Hospital, await_that, make_hospital, write_fhir
    from kit.node_attacks import ATTACKS, attacked
    from kit.served_node import Served

    def requested(served: Served, study: str) -> str:
        hospital: Hospital = served.hospital
        body = {
            "permit": hospital.permit(),
            "study": hospital.study(study_id=study),
            "user_key": hospital.user.public.jwk(),
        }
        with served.coordinator() as client:
            return str(client.post("/visits", json=body)["visit"])

    def ready(served: Served, visit: str) -> Path:
        state = served.hospital.state
        vht_node("approve", state, visit, "--operator", "Dr Ada")
        await_that(lambda: vht_node("visits", state)["visits"][0]["state"] == "ready")
        return Path((state / "run_dir").read_text().strip()) / f"{visit}.sock"

    def seconds(served: Served, visits: list[str]) -> float:
        slowest = 0.0
        with served.client(internal=True) as operator:
            operator.get("/api/status")  # a connection stands, as in an operator's browser
            for visit in visits:
                began = time.monotonic()
                operator.post(f"/api/visits/{visit}/stop", json={"operator": "Dr Ada"})
                slowest = max(slowest, time.monotonic() - began)
        return slowest

    with tempfile.TemporaryDirectory() as folder, ExitStack() as closing:
        hospital = make_hospital(Path(folder))
        closing.callback(hospital.issuer.stop)
        vht_node("ingest", hospital.state, write_fhir(hospital.root / "fhir"))
        with hospital.open(start=False) as node:
            node.accounts.add("Dr Ada", "approver", "correct horse")
        served = Served(hospital)
        closing.callback(served.end)
        served.await_health()
        alone = seconds(served, [requested(served, f"alone-{number}") for number in range(STOPS)])
        under: dict[str, float] = {}
        for name in ATTACKS:
            visits = [requested(served, f"{name}-{number}") for number in range(STOPS)]
            enclave = ready(served, visits[-1]) if name == "silent" else None
            with attacked(served, name, enclave) as attack:
                under[name] = seconds(served, visits)
                assert attack.goes_on()
        slowest = max(under.values())
        rows = [Row("stop_under_attack_s", slowest, "s", "<= 1", slowest <= 1.0, "the same, unattacked", alone)]
        return rows + [Row(f"stop_under_{name}_s", value, "s", "<= 1", value <= 1.0) for name, value in under.items()]
