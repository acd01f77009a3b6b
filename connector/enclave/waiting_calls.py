"""Connections to an enclave whose call is still arriving: they are read side by side, and none keeps another waiting.

Whoever has not shown the visit's token yet has ``UNKNOWN_S`` for a header, and is asked for no body; a call with the
token has ``PATIENCE_S`` for all of it. Of too many unknown connections the oldest is dropped.
"""

import contextlib
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vht_federate.errors import WireError
from vht_federate.framing import ArrivingFrame

__all__ = ["WaitingCall", "WaitingCalls"]

UNKNOWN_S = 10.0
PATIENCE_S = 30.0
UNKNOWN = 16  # connections
CHUNK = 1 << 20


@dataclass
class WaitingCall:
    """A connection, what has arrived on it, and until when (monotonic) the rest may."""

    connection: socket.socket
    arriving: ArrivingFrame
    ends: float
    known: bool = False
    complete: bool = False
    error: WireError | None = field(default=None, repr=False)

    def frame(self) -> tuple[dict[str, Any], bytes]:
        """The header and the body, which is empty where the header has no right to one. Raises WireError."""
        if self.error is not None or self.arriving.header is None:
            raise self.error or _cut_short()
        return self.arriving.header, self.arriving.body if self.known else b""


class WaitingCalls:
    """Calls that arrive at ``listener``; ``opens`` says whether a header carries the visit's token."""

    def __init__(
        self,
        listener: socket.socket,
        opens: Callable[[dict[str, Any]], bool],
        *,
        max_body: int,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener, self._opens, self._max_body, self._timer = listener, opens, max_body, timer
        self._selector = selectors.PollSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._waiting: list[WaitingCall] = []  # oldest first
        self._left_at = timer()
        listener.setblocking(False)

    def take(self) -> WaitingCall:
        """The next call that is there, or that is none (``frame`` raises). Its connection is the caller's."""
        away = self._timer() - self._left_at  # time in which nobody was read
        for call in self._waiting:
            call.ends += away
        while True:
            for call in self._waiting:
                if call.complete:
                    self._let_go(call)
                    self._left_at = self._timer()
                    return call
            ends = min((call.ends for call in self._waiting), default=None)
            events = self._selector.select(None if ends is None else max(0.0, ends - self._timer()))
            for key, _ in events:
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)
            self._drop_late()

    # --- parts --------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            frame = ArrivingFrame(max_body=self._max_body)
            call = WaitingCall(connection, frame, self._timer() + UNKNOWN_S)
            self._waiting.append(call)
            self._selector.register(connection, selectors.EVENT_READ, call)
        unknown = [call for call in self._waiting if not call.known and not call.complete]
        for call in unknown[:-UNKNOWN]:
            self._drop(call)

    def _read(self, call: WaitingCall) -> None:
        if call.complete or call not in self._waiting:
            return
        try:
            chunk = call.connection.recv(min(call.arriving.wanted, CHUNK))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(call)
            return
        if not chunk:  # who asks may still listen
            call.error, call.complete = _cut_short(), True
            return
        try:
            call.arriving.add(chunk)
        except WireError as error:
            call.error, call.complete = error, True
            return
        if call.arriving.header is not None and not call.known:
            call.known = self._opens(call.arriving.header)
            call.ends = self._timer() + PATIENCE_S
            call.complete = not call.known
        call.complete = call.complete or not call.arriving.wanted

    def _drop_late(self) -> None:
        now = self._timer()
        for call in [call for call in self._waiting if not call.complete and call.ends <= now]:
            self._drop(call)

    def _drop(self, call: WaitingCall) -> None:
        self._let_go(call)
        call.connection.close()

    def _let_go(self, call: WaitingCall) -> None:
        self._waiting.remove(call)
        self._selector.unregister(call.connection)


def _cut_short() -> WireError:
    return WireError("the peer closed the connection in the middle of a frame", code="VHT-WIRE-TRUNCATED")
