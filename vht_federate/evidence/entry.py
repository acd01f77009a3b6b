"""What an evidence log is made of: entries and signed tree heads, as values."""

from dataclasses import dataclass
from typing import Any

from vht_federate.domain.log_head import HEAD_TYP, RECEIPT_TYP
from vht_federate.evidence.merkle import hash_leaf
from vht_federate.signing.canonical import canonical_bytes

__all__ = ["EXPORT_SCHEMA", "EXPORT_TYP", "HEAD_TYP", "RECEIPT_TYP", "LogEntry", "TreeHead"]

EXPORT_TYP = "vht-log-export+jwt"
EXPORT_SCHEMA = "1"
_ENTRY_FIELDS = frozenset({"index", "time", "node", "kind", "permit_id", "visit", "body", "salt"})


@dataclass(frozen=True)
class TreeHead:
    """A state of the log; ``token`` is the node's signature over the other fields."""

    node: str
    size: int
    root: str  # hex
    time: str
    token: str

    def claims(self) -> dict[str, Any]:
        return {"node": self.node, "size": self.size, "root": self.root, "time": self.time}


@dataclass(frozen=True)
class LogEntry:
    """One line of the log. ``body`` holds public values only: never anything that comes from a patient."""

    index: int
    time: str  # RFC 3339, UTC
    node: str
    kind: str
    permit_id: str | None
    visit: str | None
    body: dict[str, Any]
    salt: str

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in sorted(_ENTRY_FIELDS)}

    def leaf(self) -> bytes:
        """RFC 9162 leaf hash."""
        return hash_leaf(canonical_bytes(self.as_dict()))

    @classmethod
    def from_dict(cls, value: Any) -> "LogEntry":
        """Raises ValueError for anything that is not exactly an entry."""
        if not isinstance(value, dict) or set(value) != _ENTRY_FIELDS:
            raise ValueError("not an entry")
        texts = [value["time"], value["node"], value["kind"], value["salt"]]
        optional = [value["permit_id"], value["visit"]]
        if (
            type(value["index"]) is not int
            or not all(isinstance(text, str) for text in texts)
            or not all(text is None or isinstance(text, str) for text in optional)
            or not isinstance(value["body"], dict)
        ):
            raise ValueError("not an entry")
        return cls(**value)
