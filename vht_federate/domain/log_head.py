"""A state of a node's evidence log as others hold it: a signed tree head, or a receipt, which names one too.

Whoever holds one shows it to the node in the header ``HEADER``: a log that was cut, or restored from an older copy,
does not hold it. The permit issuer keeps the newest of each node and gives it back to whoever signs with the same key.
"""

from dataclasses import dataclass
from typing import Any

from vht_federate.errors import VerificationError
from vht_federate.signing.keys import PublicKey

__all__ = ["HEADER", "HEAD_TYP", "KEY_HEADER", "LARGEST", "QUERY_TYP", "RECEIPT_TYP", "LogState", "read_log_state"]

HEAD_TYP = "vht-tree-head+jwt"
RECEIPT_TYP = "vht-receipt+jwt"
QUERY_TYP = "vht-head-query+jwt"  # asks for the newest head that the issuer holds, without giving it one
HEADER = "VHT-Log-Head"
KEY_HEADER = "VHT-Evidence-Key"  # RFC 8037 x of the key that signed it
LARGEST = 32_768  # characters


@dataclass(frozen=True)
class LogState:
    """The first ``size`` entries have the Merkle root ``root``, in hex."""

    size: int
    root: str


def read_log_state(key: PublicKey, token: Any) -> LogState | None:
    """What a head or a receipt says; None for what ``key`` did not sign as one."""
    for typ in (HEAD_TYP, RECEIPT_TYP):
        try:
            claims = key.verify(token if isinstance(token, str) else "", typ=typ)
        except VerificationError:
            continue
        size, root = claims.get("size"), claims.get("root")
        if type(size) is int and 0 < size < 2**63 and isinstance(root, str):
            return LogState(size, root)
    return None
