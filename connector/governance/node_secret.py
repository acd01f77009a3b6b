"""The node's one symmetric secret, and the keys derived from it, one per use (HMAC-SHA256 as in RFC 5869's expand)."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vht_federate.errors import InputError

__all__ = ["NodeSecret", "private_files", "write_private"]


@contextmanager
def private_files(state: Path) -> Iterator[None]:
    """Inside, whatever this process makes is its user's alone; ``state`` is, too, however it was made before."""
    before = os.umask(0o077)
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(PermissionError):  # a volume that belongs to the container's host: its files are private still
            state.chmod(0o700)
        yield
    finally:
        os.umask(before)


def write_private(path: Path, content: bytes) -> None:
    """Write a new file with mode 0600. Raises FileExistsError for one that is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


@dataclass(frozen=True, repr=False)
class NodeSecret:
    """32 random bytes that never leave the node."""

    raw: bytes

    @classmethod
    def create(cls, path: Path) -> "NodeSecret":
        """Make one at ``path`` (mode 0600); keep one that exists."""
        if not path.exists():
            write_private(path, secrets.token_bytes(32))
        return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> "NodeSecret":
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise InputError("the node's secret is missing", code="VHT-INPUT-CONFIG") from error
        if len(raw) != 32:
            raise InputError("the node's secret is not 32 bytes", code="VHT-INPUT-CONFIG")
        return cls(raw)

    def _key(self, use: bytes) -> bytes:
        return hmac.new(self.raw, b"vht-node|" + use + b"\x01", hashlib.sha256).digest()

    @property
    def subject_key(self) -> bytes:
        """Turns a Patient.id into the ``subject`` of the node's own store."""
        return self._key(b"subject")

    def visit_token(self, visit_id: str) -> str:
        """The bearer token of one visit, hex; a retry of the same request receives the same."""
        return hmac.new(self._key(b"visit-token"), visit_id.encode(), hashlib.sha256).hexdigest()

    def __repr__(self) -> str:
        return "NodeSecret(redacted)"
