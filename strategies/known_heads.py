"""The newest state of each hospital's evidence log that this coordinator was shown: it tells the hospital at the next
contact, so that a log that was restored from an older copy is noticed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vht_federate.domain.log_head import HEADER, LARGEST, read_log_state
from vht_federate.errors import InputError
from vht_federate.files import replace_file
from vht_federate.signing.keys import PublicKey

__all__ = ["KnownHeads"]

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
        state = read_log_state(key, token)
        if state is None or len(token) > LARGEST:
            return
        path = self._path(key)
        known = read_log_state(key, path.read_text().strip()) if path.exists() else None
        if known is None or state.size > known.size:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, f"{token}\n".encode())

    def _path(self, key: PublicKey) -> Path:
        if not _KID.fullmatch(key.kid):
            raise InputError("this is no key's thumbprint", code="VHT-INPUT-KEY")
        return self.folder / f"{key.kid}.jwt"
