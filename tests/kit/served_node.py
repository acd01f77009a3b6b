"""A node served by ``vht node serve`` in a process of its own."""

import signal
import subprocess
import sys
from urllib.parse import urlsplit

from connector.settings import NodeSettings
from kit.hospital import Hospital, await_that
from vht_federate.client import Client
from vht_federate.errors import UnavailableError

__all__ = ["VHT", "Served"]


VHT = [sys.executable, "-m", "vht_federate", "--json", "node"]


def _heed_interrupts() -> None:
    """A shell starts its background jobs with SIGINT ignored, and children inherit that: not this one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Served:
    """A node served by ``vht node serve`` in a process of its own."""

    def __init__(self, hospital: Hospital) -> None:
        self.hospital = hospital
        self.settings = NodeSettings.read(hospital.state)
        self.process = subprocess.Popen(
            [*VHT, "serve", str(hospital.state)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, preexec_fn=_heed_interrupts,
        )  # fmt: skip

    def client(self, *, internal: bool = False) -> Client:
        token = (self.hospital.state / "operator.token").read_text().strip() if internal else None
        url = self.settings.internal_url if internal else self.settings.outward_url
        return Client(url, self.settings.ca, token=token)

    def coordinator(self, token: str | None = None) -> Client:
        """A client of the coordinator whom the hospital's studies name, asking about the visit of ``token``."""

        def proof(method: str, url: str) -> str:
            return self.hospital.proof(method, urlsplit(url).path, token=token).proof

        return Client(self.settings.outward_url, self.settings.ca, token=token, prove=proof)

    def await_health(self) -> None:
        def healthy() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            try:
                with self.client() as client:
                    return bool(client.get("/health")["status"] == "ok")
            except UnavailableError:
                return False

        await_that(healthy, 120)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=300)
        return self.process.returncode
