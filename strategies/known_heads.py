"""The newest state of each hospital's evidence log that this coordinator was shown: it tells the hospital at the next
contact, so that a log that was restored from an older copy is noticed.

It goes along in a header, of which a proxy takes 8 KB at most (nginx, as it is installed): what is longer than
``LONGEST`` is neither kept nor sent. A receipt may be: that of a closed visit lists every event. The head that the
evidence carries says the same in a few hundred characters.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vht_federate.domain.log_head import HEADER, read_log_state
from vht_federate.errors import InputError
from vht_federate.files import replace_file
from vht_federate.signing.keys import PublicKey

__all__ = ["KnownHeads"]

LONGEST = 4_000  # characters
log = logging.getLogger("vht.coordinator.heads")
_KID = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class KnownHeads:
    """One signed head, or receipt, by evidence key, each a file of ``folder``; several studies may write at once."""

    folder: Path

    def headers(self, evidence_key: Mapping[str, str]) -> dict[str, str]:
        """What to send along to the hospital that holds ``evidence_key`` (JWK)."""
        try:
            token = self._path(PublicKey.from_jwk(dict(evidence_key))).read_text(encoding="ascii").strip()
        except (OSError, ValueError, TypeError, InputError):
            return {}
        return {HEADER: token} if len(token) <= LONGEST else {}

    def note(self, evidence_key: Mapping[str, str], token: Any) -> None:
        """Keep a head or a receipt where it is the newest of its key, or as new as that and shorter.

        One that the key did not sign is left out, and so is a long one. One that cannot be kept is logged: a full disk
        costs what is known of the hospital, not what is asked of it.
        """
        try:
            key = PublicKey.from_jwk(dict(evidence_key))
        except InputError:
            return
        state = read_log_state(key, token)
        if state is None or len(token) > LONGEST:
            return
        path = self._path(key)
        try:
            kept = path.read_text(encoding="ascii", errors="replace").strip() if path.exists() else ""
            known = read_log_state(key, kept)
            if known is None or (state.size, -len(token)) > (known.size, -len(kept)):
                self.folder.mkdir(parents=True, exist_ok=True)
                replace_file(path, f"{token}\n".encode())
        except OSError as error:
            log.warning("a head of key %s cannot be kept: %s", key.kid, error.strerror or type(error).__name__)

    def _path(self, key: PublicKey) -> Path:
        if not _KID.fullmatch(key.kid):
            raise InputError("this is no key's thumbprint", code="VHT-INPUT-KEY")
        return self.folder / f"{key.kid}.jwt"
