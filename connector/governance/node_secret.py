"""The node's one symmetric secret, and the keys derived from it, one per use (HMAC-SHA256 as in RFC 5869's expand)."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path

from vht_federate.errors import InputError
from vht_federate.files import create_private

__all__ = ["NodeSecret"]


@dataclass(frozen=True, repr=False)
class NodeSecret:
    """32 random bytes that never leave the node."""

    raw: bytes

    @classmethod
    def create(cls, path: Path) -> "NodeSecret":
        """Make one at ``path`` (mode 0600); keep one that exists."""
        if not path.exists():
            create_private(path, secrets.token_bytes(32))
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
