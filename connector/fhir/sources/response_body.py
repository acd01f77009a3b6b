"""The body of an answer, in memory: no longer than its kind may be, and no later than the deadline."""

import httpx

from connector.fhir.sources.retry import RetryPolicy
from vht_federate.errors import UnavailableError

__all__ = ["body_of", "malformed"]


def malformed(what: str) -> UnavailableError:
    return UnavailableError(f"the FHIR server's {what} cannot be read", code="VHT-UNAVAILABLE-SOURCE-ANSWER")


def body_of(answer: httpx.Response, pace: RetryPolicy, *, limit: int) -> bytes:
    """What is still to be read of ``answer``, decoded.

    Raises UnavailableError VHT-UNAVAILABLE-SOURCE-ANSWER beyond ``limit`` bytes, VHT-UNAVAILABLE-SOURCE-DEADLINE;
    httpx.TransportError where the connection breaks.
    """
    parts, size = [], 0
    try:
        for part in answer.iter_bytes():
            pace.check()
            size += len(part)
            if size > limit:
                raise malformed("answer, larger than any of its kind,")
            parts.append(part)
    except httpx.DecodingError:
        raise malformed("answer, which is not in the encoding that it names,") from None
    return b"".join(parts)
