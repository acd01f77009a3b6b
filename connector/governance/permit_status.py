"""The issuer's status list, fetched anew at every decision: unreachable, stale or rolled back means no."""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Protocol

from connector.governance.log_heads import LogHeads
from connector.store.database import Database
from connector.store.models import IssuerState
from vht_federate.client import Client
from vht_federate.domain.log_head import HEADER
from vht_federate.domain.permit import Permit, StatusList
from vht_federate.errors import PermitError, UnavailableError, VhtError
from vht_federate.permits.check import check_status, check_time
from vht_federate.signing.keys import PublicKey

__all__ = ["IssuerService", "PermitStatus", "StatusSource"]


class StatusSource(Protocol):
    """Where the signed status list comes from."""

    def fetch(self) -> str:
        """The list as a JWT. Raises PermitError VHT-PERMIT-STATUS-UNREACHABLE."""


class IssuerService:
    """The permit issuer's HTTPS service. With ``heads`` it also keeps the newest head of this node's log, and shows
    what it kept: ``fetch`` then raises VerificationError where the log is not what it was."""

    def __init__(self, url: str, ca: Path, *, timeout_s: float = 5.0, heads: LogHeads | None = None) -> None:
        self._url, self._ca, self._timeout_s, self._heads = url, ca, timeout_s, heads
        self._closing = ExitStack()

    @cached_property
    def _client(self) -> Client:
        """Made for the first question: most commands ask none."""
        return self._closing.enter_context(Client(self._url, self._ca, timeout_s=self._timeout_s))

    def fetch(self) -> str:
        try:
            try:
                token, head = self._ask()
            except UnavailableError:  # the connection kept from last time may have gone with an issuer's restart
                token, head = self._ask()
        except VhtError as error:
            raise PermitError(
                "the permit issuer's status list cannot be fetched, so nothing may run",
                code="VHT-PERMIT-STATUS-UNREACHABLE",
                hint="is the permit issuer's service running, and does issuer_url in node.toml name it?",
            ) from error
        if self._heads is not None:
            self._heads.deposited(head)
        return token

    def _ask(self) -> tuple[str, str | None]:
        """The list, and the newest head of this node's log that the issuer held."""
        headers = self._heads.headers() if self._heads is not None else {}
        answer = self._client.request("GET", "/status-list", headers=headers)
        return answer.text.strip(), answer.headers.get(HEADER)

    def close(self) -> None:
        self._closing.close()


class PermitStatus:
    """Is a permit good at this moment?"""

    def __init__(
        self, source: StatusSource, issuer: PublicKey, database: Database, clock: Callable[[], datetime]
    ) -> None:
        self._source, self._issuer, self._database, self._clock = source, issuer, database, clock

    def require_good(self, permit: Permit) -> StatusList:
        """The fresh list that says so. Raises PermitError VHT-PERMIT-EXPIRED, -NOT-YET, -STATUS-…, or RevokedError.

        A list older than one seen before is refused however long it claims to be valid.
        """
        check_time(permit, self._clock())
        token = self._source.fetch()
        with self._database.read() as session:
            state = session.get(IssuerState, self._issuer.kid)
            newest = state.serial if state else 0
        status = check_status(token, self._issuer, permit, self._clock(), minimum_serial=newest)
        if state is None or status.serial > newest:
            self._remember(status.serial, token)
        return status

    def _remember(self, serial: int, token: str) -> None:
        with self._database.write() as session:
            row = session.get(IssuerState, self._issuer.kid)
            if row is None:
                session.add(IssuerState(issuer_kid=self._issuer.kid, serial=serial, token=token, seen_at=self._clock()))
            elif serial > row.serial:
                row.serial, row.token, row.seen_at = serial, token, self._clock()
