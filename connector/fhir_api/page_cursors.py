"""Cursors of a search: at which state of the store, where, and until when its pages can be read.

A search goes on over the state it began with, so that nothing is missed or comes twice; for a while, and no longer.
A cursor is signed (HMAC-SHA256) with a key of this process alone, so that nobody writes one.
"""

import base64
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from vht_federate.errors import InputError, NotFoundError

__all__ = ["LASTS", "Cursor", "read_cursor", "written"]

LASTS = timedelta(minutes=15)  # from the first page: no page gives more time
_DIGEST_BYTES = 32
_NUMBERS = (6, 6, 6)  # bytes of generation, offset, end


@dataclass(frozen=True)
class Cursor:
    """``ends`` has whole seconds."""

    generation: int
    offset: int
    ends: datetime


@cache
def _key() -> bytes:
    return secrets.token_bytes(32)


def written(cursor: Cursor) -> str:
    """As it stands in a link."""
    values = cursor.generation, cursor.offset, int(cursor.ends.timestamp())
    payload = b"".join(value.to_bytes(size, "big") for value, size in zip(values, _NUMBERS, strict=True))
    return base64.urlsafe_b64encode(payload + hmac.digest(_key(), payload, "sha256")).decode().rstrip("=")


def read_cursor(text: str, now: datetime) -> Cursor:
    """Raises InputError VHT-INPUT-SEARCH for what this process has not written, NotFoundError VHT-INPUT-GONE for what
    has ended."""
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        decoded = b""
    payload, digest = decoded[:-_DIGEST_BYTES], decoded[-_DIGEST_BYTES:]
    if len(payload) != sum(_NUMBERS) or not hmac.compare_digest(digest, hmac.digest(_key(), payload, "sha256")):
        raise InputError("_page is not one of ours", code="VHT-INPUT-SEARCH", hint="search again")
    generation, offset, ends = (int.from_bytes(payload[at : at + 6], "big") for at in (0, 6, 12))
    cursor = Cursor(generation, offset, datetime.fromtimestamp(ends, UTC))
    if now >= cursor.ends:
        raise NotFoundError("the pages of this search have ended", code="VHT-INPUT-GONE", hint="search again")
    return cursor
