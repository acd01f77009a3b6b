"""The newest state of each hospital's evidence log that this coordinator was shown: it tells the hospital at the next
contact, so that a log that was restored from an older copy is noticed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vht_federate.errors import InputError, VhtError
from vht_federate.evidence.entry import HEAD_TYP, RECEIPT_TYP
from vht_federate.files import replace_file
from vht_federate.signing.keys import PublicKey

__all__ = ["HEADER", "KnownHeads"]

HEADER = "VHT-Log-Head"
_LARGEST = 32_768  # a hospital reads no longer header
_KID = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class KnownHeads:
    """One signed head, or receipt, by evidence key, each a file of ``folder``; several studies may write at once."""

    folder: Path

    def headers(self, evidence_key: Mapping[str, str]) -> dict[str, str]:
        """What to send along to the hospital that holds ``evidence_key`` (JWK)."""
        try:
            path = self._path(PublicKey.from_jwk(dict(evidence_key)))
            return {HEADER: path.read_text().strip()}
        except (OSError, InputError):
            return {}

    def note(self, evidence_key: Mapping[str, str], token: Any) -> None:
        """Keep a head or a receipt where it is the newest of its key. One that the key did not sign is left out."""
        try:
            key = PublicKey.from_jwk(dict(evidence_key))
        except InputError:
            return
        size = _size(key, token)
        if size is None or len(token) > _LARGEST:
            return
        path = self._path(key)
        known = _size(key, path.read_text().strip()) if path.exists() else None
        if known is None or size > known:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, f"{token}\n".encode())

    def _path(self, key: PublicKey) -> Path:
        if not _KID.fullmatch(key.kid):
            raise InputError("this is no key's thumbprint", code="VHT-INPUT-KEY")
        return self.folder / f"{key.kid}.jwt"


def _size(key: PublicKey, token: Any) -> int | None:
    for typ in (HEAD_TYP, RECEIPT_TYP):
        try:
            size = key.verify(token if isinstance(token, str) else "", typ=typ).get("size")
        except VhtError:
            continue
        if type(size) is int:
            return size
    return None
