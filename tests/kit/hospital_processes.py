"""The processes of one hospital of a local federation, and how it comes back after they were killed."""

import psutil

from deploy.local_federation import LocalFederation
from kit.process_family import await_that
from vht_federate.processes import alive

__all__ = ["ONLINE", "ROUND_DEADLINE_S", "bring_back", "processes_of"]


ROUND_DEADLINE_S = 60.0  # the coordinator misses a dead hospital after that; an honest one that stalls has that long
ONLINE = "SuperNode ID:"  # what a SuperNode logs once the coordinator let it in


def processes_of(federation: LocalFederation, name: str) -> list[psutil.Process]:
    """Connector, enclaves, SuperNode and executor of one hospital, the connector first."""
    top = psutil.Process(federation.services[name].pid)
    return [top, *top.children(recursive=True)]


def bring_back(federation: LocalFederation, name: str) -> None:
    """Start a hospital that was killed, and wait until the coordinator has let its SuperNode in again.

    What the coordinator says is not enough: it counts a dead SuperNode as online for up to a minute, and refuses its
    successor as long.
    """
    if alive(federation.services[name].pid):
        return
    log = federation.node_state(name) / "supernode.log"
    before = log.read_text().count(ONLINE)
    federation._serve(name, "node", "serve", str(federation.node_state(name)))
    federation._await_health(name)
    await_that(lambda: log.read_text().count(ONLINE) > before, 180, f"{name} is online again")
