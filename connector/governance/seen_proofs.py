"""A proof of possession is good for one request: which ones this node has seen."""

import threading
from collections import OrderedDict
from datetime import datetime

from vht_federate.errors import RefusedError
from vht_federate.signing.possession import LIFETIME, refused

__all__ = ["SeenProofs"]

MOST_OF_A_KEY = 20_000  # within twice LIFETIME; a coordinator asks twice a second for each visit that it waits for


class SeenProofs:
    """Identifiers of proofs, kept for as long as the proofs could be used again. Safe for threads.

    Only proofs that were verified come here, so nobody fills it but the holder of a key that a signed study names. It
    is lost when the node restarts: what could be repeated then for some minutes is a request that was answered before
    to whoever reads its TLS connection.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[str, OrderedDict[str, datetime]] = {}

    def use(self, kid: str, identifier: str, now: datetime) -> None:
        """Raises RefusedError VHT-REFUSED-PROOF for one that was used, VHT-REFUSED-RATE beyond MOST_OF_A_KEY."""
        with self._lock:
            self._forget(now)
            seen = self._until.setdefault(kid, OrderedDict())
            if identifier in seen:
                raise refused("it was used before")
            if len(seen) >= MOST_OF_A_KEY:
                raise RefusedError("this key sends too many requests", code="VHT-REFUSED-RATE", hint="ask less often")
            seen[identifier] = now + 2 * LIFETIME

    def _forget(self, now: datetime) -> None:
        for kid, seen in list(self._until.items()):
            while seen and next(iter(seen.values())) <= now:
                seen.popitem(last=False)
            if not seen:
                del self._until[kid]
