"""A stand-in for an enclave: answers framed calls on a Unix socket with numbers that a test can predict."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from vht_federate.errors import VhtError, WireError
from vht_federate.framing import receive_frame, send_frame

Answer = Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]


def add_one(header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """train: weights + 1; evaluate: a fixed table; marginals: a count."""
    if header["job"] == "train":
        return {"patients_noised": 100.0, "steps": 1}, save({k: v + np.float32(1) for k, v in load(body).items()})
    if header["job"] == "evaluate":
        return {"confusion": [40.0, 10.0, 5.0, 45.0], "positives": [5.0, 45.0], "negatives": [40.0, 10.0]}, b""
    return {"tables": 1}, save({"one": np.array([1.0], dtype=np.float32)})


TOKEN = "open-sesame"


class ToyEnclave:
    """Serves ``<folder>/<visit>.sock``; ``answer`` may raise a typed error, which is carried as a refusal."""

    def __init__(self, folder: Path, visit: str, answer: Answer = add_one, *, token: str = TOKEN) -> None:
        self.calls: list[tuple[str, int]] = []
        self._answer, self._token = answer, token
        self._path = folder / f"{visit}.sock"
        (folder / f"{visit}.token").write_text(token + "\n")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, suppress(OSError, WireError):  # whoever asked may have been killed
                header, body = receive_frame(sock)
                try:
                    if header["token"] != self._token:
                        raise VhtError("wrong token", code="VHT-REFUSED-TOKEN")
                    self.calls.append((header["job"], header["round"]))
                    result, tensors = self._answer(header, body)
                    send_frame(sock, {"ok": True, "result": result}, tensors)
                except VhtError as error:
                    send_frame(sock, {"ok": False, "error": error.envelope()})

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=60)
        self._path.unlink(missing_ok=True)
