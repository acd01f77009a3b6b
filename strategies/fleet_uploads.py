"""Bodies that hospitals send to the fleet API, and how much memory they may take at once.

A SuperNode signs the time of each request; only the SuperLink knows whose key is enrolled, and it judges a request when
all of it is there. So the gateway reads little of anybody (``ANYBODY``) and more of whoever signs with a key that the
SuperLink has accepted before: a SuperNode asks for messages before it replies to one. What all of them send at the same
time is bounded, what one key sends as well, and a body that trickles in is given up.
"""

import asyncio
import binascii
import time
from base64 import b64decode
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime

from fastapi import Request

from vht_federate.errors import InputError, UnavailableError
from vht_federate.request_bodies import require_one_length

__all__ = ["ANYBODY", "MAX_BODY_BYTES", "FleetUploads", "require_one_signature"]

MAX_BODY_BYTES = 256 << 20
ANYBODY = 64 << 10
TOGETHER = 2 << 30
OF_STRANGERS = 64 << 20
UNCOUNTED = 4 << 10  # of a stranger's body: questions for messages are smaller, and pass whatever strangers hold
KEYS = 10_000
SLOWEST = 50_000  # bytes a second
PATIENCE_S = 30.0
ARRIVING_EVERY_S = 1.0
_CLOCKS_DIFFER_S = 300.0


def require_one_signature(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises InputError VHT-INPUT-FRAMING where a header of Flower's stands twice: two readers could read two keys."""
    names = [name.lower() for name, _ in headers if name.lower().startswith(b"flwr-")]
    if len(names) > len(set(names)):
        raise InputError("a request has one signature, key and time: one stands here twice", code="VHT-INPUT-FRAMING")


class FleetUploads:
    """The bodies that one gateway holds. For one event loop."""

    def __init__(self, together: int = TOGETHER, of_strangers: int = OF_STRANGERS) -> None:
        self._together, self._of_strangers = together, of_strangers
        self._accepted: OrderedDict[str, None] = OrderedDict()
        self._held: Counter[str] = Counter()  # by key, "" for strangers

    def accepted(self, headers: Mapping[str, str]) -> None:
        """The SuperLink answered a request with these headers: their key is enrolled."""
        key = headers.get("flwr-public-key")
        if key:
            self._accepted[key] = None
            self._accepted.move_to_end(key)
            if len(self._accepted) > KEYS:
                self._accepted.popitem(last=False)

    @asynccontextmanager
    async def body(self, request: Request, arriving: Callable[[], None]) -> AsyncIterator[bytes]:
        """The body, held until the block ends. ``arriving`` is called about once a second while more of it comes.

        Raises InputError VHT-INPUT-SIZE or -FRAMING, UnavailableError VHT-UNAVAILABLE-UPLOADS, -SLOW.
        """
        length = require_one_length(request.headers.raw)
        key = "" if length is not None and length <= UNCOUNTED else self._sender(request.headers)
        limit = MAX_BODY_BYTES if key else ANYBODY
        if length is not None and length > limit:
            raise _too_large(key)
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            counted = size if key else max(0, size - UNCOUNTED)
            self._require_room(key, counted - held)
            self._held[key] += counted - held
            held = counted

        try:
            if key and length is not None:
                hold(length)
            yield await _read(request, limit, arriving, hold if not key or length is None else _nothing)
        finally:
            self._held[key] -= held
            if not self._held[key]:
                del self._held[key]

    def _require_room(self, key: str, more: int) -> None:
        own = self._held[key] + more
        room = own <= self._of_strangers if not key else own <= self._together // 4
        if more > 0 and not (room and self._held.total() + more <= self._together):
            raise UnavailableError(
                "the coordinator holds as many uploads as it can",
                code="VHT-UNAVAILABLE-UPLOADS",
                hint="ask again in 5 seconds",
                retry_after_s=5,
            )

    def _sender(self, headers: Mapping[str, str]) -> str:
        """The key that signed these headers a moment ago, if the SuperLink has accepted it before; else nobody's."""
        from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

        key, signed_at = headers.get("flwr-public-key", ""), headers.get("flwr-timestamp", "")
        if key not in self._accepted:
            return ""
        try:
            age = time.time() - datetime.fromisoformat(signed_at).timestamp()
            signature = b64decode(headers["flwr-signature"], validate=True)
            public_key = bytes_to_public_key(b64decode(key, validate=True))
            good = verify_signature(public_key, signed_at.encode("ascii"), signature)
        except (KeyError, ValueError, TypeError, OverflowError, binascii.Error):
            return ""
        return key if good and abs(age) < _CLOCKS_DIFFER_S else ""


async def _read(request: Request, limit: int, arriving: Callable[[], None], hold: Callable[[int], None]) -> bytes:
    body, began = bytearray(), time.monotonic()
    called = began
    chunks = request.stream()
    while True:
        patience_s = PATIENCE_S + len(body) / SLOWEST - (time.monotonic() - began)
        try:
            chunk = await asyncio.wait_for(anext(chunks, None), max(0.0, patience_s))
        except TimeoutError as error:
            raise UnavailableError("this request arrives too slowly", code="VHT-UNAVAILABLE-SLOW") from error
        if chunk is None:
            return bytes(body)
        hold(len(body) + len(chunk))
        body += chunk
        if len(body) > limit:
            raise _too_large("" if limit == ANYBODY else "key")
        if time.monotonic() - called > ARRIVING_EVERY_S:
            called = time.monotonic()
            arriving()


def _too_large(key: str) -> InputError:
    whose = "a hospital" if key else "whoever is not known to be a hospital"
    return InputError(f"the request is larger than {whose} may send", code="VHT-INPUT-SIZE")


def _nothing(_: int) -> None:
    pass
