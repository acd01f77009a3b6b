"""The enclave's end of the control channel: the one line to its connector, and its tether.

Frames of ``vht_federate.framing`` over an inherited socket pair. The enclave asks, the connector answers
``{"ok": true}`` or ``{"ok": false, "error": envelope}``. When the channel closes, the connector is gone or has stopped
the visit, and the process ends at once, whatever it is doing.
"""

import os
import queue
import socket
import threading
from typing import Any

from vht_federate.errors import VhtError, error_from_envelope
from vht_federate.framing import receive_frame, send_frame

__all__ = ["TETHER_CUT", "Control"]

TETHER_CUT = 3  # exit code of an enclave whose connector went away
_SMALL = 1 << 20


class Control:
    """Asks one question at a time. ``refusal`` is the last no of the connector, which has logged it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._one_at_a_time = threading.Lock()
        self.refusal: VhtError | None = None

    def order(self) -> dict[str, Any]:
        """The first frame: what to do. No thread runs yet, so that the process may still close itself off."""
        header, _ = receive_frame(self._sock, max_body=_SMALL)
        return header

    def tie(self) -> None:
        """From here on the channel brings answers, and is the tether."""
        threading.Thread(target=self._listen, name="vht-tether", daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                header, _ = receive_frame(self._sock, max_body=_SMALL)
                self._answers.put(header)
        except (VhtError, OSError):
            os._exit(TETHER_CUT)

    def tell(self, kind: str, **fields: Any) -> None:
        """Say something that needs no answer."""
        send_frame(self._sock, {"kind": kind, **fields})

    def ask(self, kind: str, **fields: Any) -> None:
        """Returns when the connector said yes. Raises the typed error that says no."""
        with self._one_at_a_time:
            self.tell(kind, **fields)
            answer = self._answers.get()
        if answer.get("ok") is not True:
            self.refusal = error_from_envelope(dict(answer.get("error") or {}))
            raise self.refusal
