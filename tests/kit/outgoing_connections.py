"""Where the processes of a hospital connect to, sampled while they run."""

import ipaddress
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import psutil

__all__ = ["Connections", "Outgoing"]

EVERY_S = 1.0


@dataclass
class Connections:
    """What was seen of one hospital: the ports on which it listens, and the far ends of all other connections."""

    listens: set[int] = field(default_factory=set)
    reached: set[tuple[str, int]] = field(default_factory=set)

    def ports(self) -> set[int]:
        return {port for _, port in self.reached}

    def strays(self, tapped: set[int]) -> set[tuple[str, int]]:
        """Far ends that are neither a tapped port nor a listener of the hospital itself, on loopback both."""
        allowed = tapped | self.listens
        return {
            (host, port)
            for host, port in self.reached
            if port not in allowed or not ipaddress.ip_address(host).is_loopback
        }


class Outgoing:
    """``with Outgoing(pids) as outgoing``: samples until the block ends; ``pids()`` are the hospitals that run now."""

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self.seen: dict[str, Connections] = {}
        self.samples = 0
        self._pids = pids
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._keep_looking, daemon=True)

    def __enter__(self) -> "Outgoing":
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    def look(self) -> None:
        """One sample of every hospital's process tree."""
        owners: dict[int, str] = {}
        for name, pid in self._pids().items():
            try:
                top = psutil.Process(pid)
                owners |= {process.pid: name for process in [top, *top.children(recursive=True)]}
            except psutil.NoSuchProcess:
                continue
        connections = [conn for conn in psutil.net_connections("inet") if conn.pid in owners]
        for conn in connections:
            if conn.status == psutil.CONN_LISTEN:
                self._of(owners[conn.pid]).listens.add(conn.laddr.port)
        for conn in connections:
            record = self._of(owners[conn.pid])
            if conn.raddr and conn.laddr.port not in record.listens:  # else somebody else connected to the hospital
                record.reached.add((conn.raddr.ip, conn.raddr.port))
        self.samples += 1

    def _of(self, name: str) -> Connections:
        return self.seen.setdefault(name, Connections())

    def _keep_looking(self) -> None:
        while not self._over.wait(EVERY_S):
            self.look()
