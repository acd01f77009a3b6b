"""Messages between a courier and an enclave over a Unix socket.

One frame: 4-byte big-endian header length, 8-byte big-endian body length, a JSON header, a body of opaque bytes
(tensors as safetensors; empty where there are none). The reader refuses headers over 1 MiB and bodies over
``max_body`` before it allocates anything.
"""

import json
import socket
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vht_federate.errors import UnavailableError, WireError, error_from_envelope
from vht_federate.signing.canonical import canonical_bytes, sha256_hex
from vht_federate.signing.strict_json import read_json

__all__ = ["ArrivingFrame", "Call", "Reply", "call_enclave", "receive_frame", "send_frame"]

_PREFIX = struct.Struct(">IQ")
MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = 1 << 31


@dataclass(frozen=True)
class Call:
    """What the coordinator asks of an enclave: the courier carries it unread."""

    visit: str
    job: str
    round: int
    params: dict[str, Any] = field(default_factory=dict)
    tensors: bytes = b""

    def sha256(self) -> str:
        """As the evidence log names the request: of the canonical JSON of the call, a newline, the tensors' bytes."""
        about = {"visit": self.visit, "job": self.job, "round": self.round, "params": self.params}
        return sha256_hex(canonical_bytes(about) + b"\n" + self.tensors)


@dataclass(frozen=True)
class Reply:
    """What an enclave answers: public numbers and noise-protected tensors (safetensors bytes)."""

    result: dict[str, Any]
    tensors: bytes = b""

    def content(self) -> bytes:
        """What leaves the node: the canonical JSON of the result, a newline, the tensors' bytes."""
        return canonical_bytes(self.result) + b"\n" + self.tensors

    def sha256(self) -> str:
        """As the evidence log names the output."""
        return sha256_hex(self.content())


def _read_exactly(sock: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        chunk = sock.recv(min(count - len(parts), 1 << 20))
        if not chunk:
            raise WireError("the peer closed the connection in the middle of a frame", code="VHT-WIRE-TRUNCATED")
        parts += chunk
    return bytes(parts)


def send_frame(sock: socket.socket, header: dict[str, Any], body: bytes = b"") -> None:
    """Send one frame. Raises OSError where the peer is gone."""
    encoded = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    sock.sendall(_PREFIX.pack(len(encoded), len(body)) + encoded)
    if body:
        sock.sendall(body)


def receive_frame(sock: socket.socket, *, max_body: int = MAX_BODY_BYTES) -> tuple[dict[str, Any], bytes]:
    """Receive one frame as ``(header, body)``. Raises WireError for anything that is not one."""
    header_length, body_length = _lengths(_read_exactly(sock, _PREFIX.size), max_body)
    header = _header(_read_exactly(sock, header_length))
    return header, _read_exactly(sock, body_length)


class ArrivingFrame:
    """One frame, as its bytes arrive: ``wanted`` says how many more the next part has, 0 when all are there.

    The parts are the prefix, the header and the body; ``header`` is there before the body is asked for.
    """

    def __init__(self, *, max_body: int = MAX_BODY_BYTES) -> None:
        self._max_body = max_body
        self._parts: list[bytearray] = [bytearray()]
        self._sizes = [_PREFIX.size]
        self.header: dict[str, Any] | None = None

    @property
    def wanted(self) -> int:
        return self._sizes[-1] - len(self._parts[-1])

    @property
    def body(self) -> bytes:
        return bytes(self._parts[2]) if len(self._parts) == 3 else b""

    def add(self, chunk: bytes) -> None:
        """``chunk`` has at most ``wanted`` bytes. Raises WireError for anything that is not a frame."""
        self._parts[-1] += chunk
        while not self.wanted and len(self._parts) < 3:
            if len(self._parts) == 1:
                header_length, self._body_length = _lengths(bytes(self._parts[0]), self._max_body)
                self._next(header_length)
            else:
                self.header = _header(bytes(self._parts[1]))
                self._next(self._body_length)

    def _next(self, size: int) -> None:
        self._parts.append(bytearray())
        self._sizes.append(size)


def _lengths(prefix: bytes, max_body: int) -> tuple[int, int]:
    header_length, body_length = _PREFIX.unpack(prefix)
    if header_length > MAX_HEADER_BYTES or body_length > max_body:
        raise WireError("a frame announces more bytes than allowed", code="VHT-WIRE-SIZE")
    return header_length, body_length


def _header(content: bytes) -> dict[str, Any]:
    try:
        header = read_json(content)
    except (ValueError, RecursionError) as error:
        raise WireError("a frame's header is not JSON", code="VHT-WIRE-HEADER") from error
    if not isinstance(header, dict):
        raise WireError("a frame's header is not a JSON object", code="VHT-WIRE-HEADER")
    return header


def call_enclave(socket_path: Path, token: str, call: Call, *, timeout_s: float = 600.0) -> Reply:
    """Ask the enclave behind ``socket_path`` once.

    Raises the enclave's own typed error where it refuses, UnavailableError where no enclave answers.
    """
    header = {"token": token, "visit": call.visit, "job": call.job, "round": call.round, "params": call.params}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            _connect(sock, socket_path, timeout_s)
            answer, body = _exchanged(sock, header, call.tensors)
    except OSError as error:
        raise UnavailableError(
            "the enclave of this visit does not answer",
            code="VHT-UNAVAILABLE-ENCLAVE",
            hint="see 'vht node status'; an operator must approve the visit, and approve it again after a crash",
        ) from error
    if not answer.get("ok"):
        raise error_from_envelope(dict(answer.get("error") or {}))
    return Reply(result=dict(answer.get("result") or {}), tensors=body)


def _exchanged(sock: socket.socket, header: dict[str, Any], tensors: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        send_frame(sock, header, tensors)
    except BrokenPipeError as gone:
        try:
            return receive_frame(sock)  # it may refuse before it has read all
        except WireError:
            raise gone from None
    return receive_frame(sock)


def _connect(sock: socket.socket, path: Path, timeout_s: float) -> None:
    """Where many connect at once the listener's queue is full for a moment, and Linux then answers EAGAIN."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            sock.connect(str(path))
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.01)
        else:
            return
