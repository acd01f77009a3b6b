"""The body of an answer, in memory: no longer than its kind may be, and no later than the deadline."""

import httpx

from connector.fhir.sources.retry import RetryPolicy
from vht_federate.errors import UnavailableError

__all__ = ["body_of", "error_body_of", "malformed"]

ERROR_LIMIT = 64 << 10  # bytes; a longer answer is no OperationOutcome that we read


class Malformed(UnavailableError):
    """An answer that is not what it has to be."""

    default_code = "VHT-UNAVAILABLE-SOURCE-ANSWER"


def malformed(what: str) -> Malformed:
    return Malformed(f"the FHIR server's {what} cannot be read")


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


def error_body_of(answer: httpx.Response, pace: RetryPolicy) -> bytes:
    """The body of an error, which may say why; empty where it cannot be read. Raises as ``body_of`` does otherwise."""
    try:
        return body_of(answer, pace, limit=ERROR_LIMIT)
    except Malformed:
        return b""
