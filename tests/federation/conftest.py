"""One running federation for all federation tests: that of the guide "by hand", walked by a reader.

Two hospitals whose data carry canaries, with every connection that a hospital makes, or is asked by, on record.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kit.outgoing_connections import Outgoing
from kit.shared_federation import Ran, small_terms
from kit.tls_wiretap import Wiretap
from kit.walked_guide import guide_ports, walked_guide

from connector.settings import NodeFiles
from deploy.commands import Commands
from deploy.local_federation import Hospital, LocalFederation
from vht_federate.processes import PidFile
from vht_federate.signing.keys import unverified_claims

NAMES = ("hospital-1", "hospital-2")


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A short path: Unix sockets do not like pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="vht-fed-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _hospitals_up(root: Path) -> dict[str, int]:
    """The connectors that run now, by name."""
    pids = {name: PidFile(NodeFiles(root / "nodes" / name).pid).running() for name in NAMES}
    return {name: pid for name, pid in pids.items() if pid is not None}


def _view_of(root: Path, ports: dict[str, int], commands: Commands, wiretap: Wiretap) -> LocalFederation:
    """The guide's federation as the tests address one: its folders are those of a local federation."""
    terms = small_terms(epsilon=4.0, minimum_nodes=len(NAMES))
    federation = LocalFederation(root, [Hospital(name, root / "data" / name) for name in NAMES], terms, commands)
    federation.routes = wiretap
    federation.ports |= {name: ports[f"{name.upper()}_PORT"] for name in ("coordinator", "platform")}
    federation.ports |= {"authority": ports["ISSUER_PORT"]}
    for number, name in enumerate(NAMES, start=1):
        federation.ports[name] = ports[f"HOSPITAL_{number}_PORT"]
        federation.ports[f"{name}/internal"] = ports[f"CONSOLE_{number}_PORT"]
    return federation


@pytest.fixture(scope="session")
def ran(place: Path) -> Iterator[Ran]:
    root = place / "f"
    root.mkdir()
    planted, ports = place / "canaries.txt", guide_ports()
    with Commands(place / "commands.sh") as commands:
        commands.run("pki", "ca", "--out", str(root / "pki"))  # the guide keeps an authority that exists
        commands.run("pki", "cert", "--ca", str(root / "pki"), "--name", "proxy", "--out", str(place / "proxy"))
        tls = place / "proxy"
        wiretap = Wiretap(place / "captures", root / "pki" / "ca.crt", tls / "proxy.crt", tls / "proxy.key")
        wiretap.besides = ports.values()
        try:
            federation = _view_of(root, ports, commands, wiretap)
            recorders = {
                "ISSUER_RECORDER": wiretap.route("authority", ports["ISSUER_PORT"]),
                "COORDINATOR_RECORDER": wiretap.route("coordinator", ports["COORDINATOR_PORT"]),
                "HOSPITAL_1_RECORDER": wiretap.route("hospital-1", ports["HOSPITAL_1_PORT"]),
                "HOSPITAL_2_RECORDER": wiretap.route("hospital-2", ports["HOSPITAL_2_PORT"]),
            }
            with ExitStack() as watching:
                outgoing = watching.enter_context(Outgoing(lambda: _hospitals_up(root)))
                with walked_guide(root, ports, recorders, planted) as guide:
                    watching.close()
                    permit = unverified_claims((root / "study" / "permit.jwt").read_text().strip())["permit_id"]
                    run = json.loads((root / "run" / "result.json").read_text())
                    needles = frozenset(planted.read_bytes().split())
                    yield Ran(federation, guide, wiretap, outgoing, str(permit), run, needles)
        finally:
            commands.close()
            wiretap.close()
