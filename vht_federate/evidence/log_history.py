"""One node's log in two exports, of whatever permits: the shorter must be where the longer began.

A log that was restored from an older copy and went on, or was written anew, holds in each export by itself; side by
side, the two show it.
"""

from vht_federate.evidence.finding import broken, entry_place
from vht_federate.evidence.node_log import NodeLog

__all__ = ["require_same_history"]


def require_same_history(log: NodeLog, other: NodeLog, holder: str) -> int:
    """How many entries both exports have. ``holder`` names the other one.

    Raises VerificationError VHT-VERIFY-LOG-FORKED naming the first entry in which they differ.
    """
    shared = min(log.size, other.size)
    if log.roots[shared] == other.roots[shared]:
        return shared
    pairs = enumerate(zip(log.leaves, other.leaves, strict=False))
    first = next(index for index, (leaf, theirs) in pairs if leaf != theirs)
    raise broken(
        entry_place(log.file, first),
        f"is another than in {holder}: the log of {log.node} was restored from an older copy and went on, or was "
        "written anew, and what it spent in between is in one of the two alone",
        "LOG-FORKED",
    )
