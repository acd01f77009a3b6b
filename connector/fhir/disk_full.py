"""A disk that takes no more, in one typed error, whichever library met it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from vht_federate.errors import UnavailableError

__all__ = ["on_this_disk"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# DuckDB says it in words alone: of a write, and of a query that spilled until nothing was left.
_WORDS = ("No space left on device", "Disk quota exceeded", "File too large", "failed to offload data block")


@contextmanager
def on_this_disk() -> Iterator[None]:
    """Raises UnavailableError VHT-UNAVAILABLE-DISK where what is done within finds no room to write."""
    try:
        yield
    except (OSError, duckdb.Error) as error:
        if getattr(error, "errno", None) in FULL or (
            isinstance(error, duckdb.Error) and any(words in str(error) for words in _WORDS)
        ):
            raise UnavailableError(
                "there is no room left to write",
                code="VHT-UNAVAILABLE-DISK",
                hint="nothing half done took effect: free the disk, then do the same again",
            ) from None
        raise
