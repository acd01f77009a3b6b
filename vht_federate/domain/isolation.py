"""How firmly an enclave is closed, in three levels; a node requires one, a permit may demand one, evidence names one.

sandbox        the operating system closes network, programs and files: what is not the visit's is out of reach
system-calls   the operating system closes network and programs; files are closed to Python's own calls alone
audit-hook     nothing is closed by the operating system: native code reaches what the node's user reaches
"""

from enum import StrEnum

__all__ = ["IsolationLevel"]


class IsolationLevel(StrEnum):
    """Ordered by ``covers``; as text, levels do not compare by strength."""

    SANDBOX = "sandbox"
    SYSTEM_CALLS = "system-calls"
    AUDIT_HOOK = "audit-hook"

    def covers(self, demanded: "IsolationLevel") -> bool:
        """True where this level is ``demanded`` or a stronger one."""
        levels = list(IsolationLevel)
        return levels.index(self) <= levels.index(demanded)

    @classmethod
    def strictest(cls, *demanded: "IsolationLevel | None") -> "IsolationLevel":
        """The strongest of what is demanded; with no demand, the weakest."""
        return next((level for level in cls if level in demanded), cls.AUDIT_HOOK)

    @classmethod
    def named(cls, word: str | None) -> "IsolationLevel":
        """The level that evidence names; any other word, and none, counts as the weakest."""
        try:
            return cls(word or "")
        except ValueError:
            return cls.AUDIT_HOOK
