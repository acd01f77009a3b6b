"""One node's log as an auditor holds it: verified against the node's key, then read.

The node signs each state of its log (heads) and the export itself; whoever carries the export, the coordinator
included, can change nothing, hide nothing and cut nothing without one of these signatures failing.
"""

from dataclasses import dataclass
from typing import Any

from vht_federate.errors import InputError, VerificationError
from vht_federate.evidence.entry import EXPORT_SCHEMA, EXPORT_TYP, HEAD_TYP, RECEIPT_TYP, LogEntry
from vht_federate.evidence.finding import broken, entry_place
from vht_federate.evidence.merkle import Frontier
from vht_federate.signing.canonical import canonical_bytes, digest_of
from vht_federate.signing.keys import PublicKey
from vht_federate.signing.strict_json import read_json

__all__ = ["NodeLog", "read_node_log"]

_FIELDS = {"schema_version", "node", "permit_id", "public_key", "entries", "head", "heads", "statement"}


@dataclass(frozen=True)
class NodeLog:
    """A verified log. ``entries`` are the ones shown: those of the permit, and ``node.*``."""

    file: str
    node: str
    size: int
    entries: tuple[LogEntry, ...]
    leaves: tuple[bytes, ...]
    roots: tuple[str, ...]  # roots[n]: hex root of the first n leaves

    def place(self, entry: LogEntry) -> str:
        return entry_place(self.file, entry.index)

    def check_receipts(self, file: str, content: bytes, key: PublicKey) -> tuple[int, ...]:
        """Every receipt in ``content`` is kept by this log. The entries they are for. Raises VerificationError."""
        tokens = _canonical(file, content)
        if not isinstance(tokens, list):
            raise broken(file, "is not a list of receipts", "RECEIPT")
        return tuple(
            self._check_receipt(f"{file} receipt {number}", _signed(file, str(token), key, RECEIPT_TYP, "RECEIPT"))
            for number, token in enumerate(tokens)
        )

    def _check_receipt(self, place: str, claims: dict[str, Any]) -> int:
        index, size = claims.get("index"), claims.get("size")
        if claims.get("node") != self.node or type(index) is not int or type(size) is not int:
            raise broken(place, "is no receipt of this node", "RECEIPT")
        if not 0 <= index < size <= self.size:
            raise broken(place, f"is for {entry_place(self.file, index)}, which the log lacks: it was cut", "RECEIPT")
        if claims.get("leaf") != self.leaves[index].hex():
            raise broken(place, f"is for another {entry_place(self.file, index)}: the log was rewritten", "RECEIPT")
        if claims.get("root") != self.roots[size]:
            raise broken(place, "names a root that this log never had: the log was rewritten", "RECEIPT")
        return index


def read_node_log(file: str, content: bytes, node: str, permit_id: str, key: PublicKey) -> NodeLog:
    """Verify the export in ``content``. Raises VerificationError VHT-VERIFY-LOG naming file and entry."""
    export = _canonical(file, content)
    if not isinstance(export, dict) or set(export) != _FIELDS or export["schema_version"] != EXPORT_SCHEMA:
        raise broken(file, "is not an export of an evidence log", "LOG")
    if export["node"] != node or export["permit_id"] != permit_id:
        raise broken(file, "belongs to another node or another permit", "LOG")
    if export["public_key"] != key.jwk():
        raise broken(file, f"is signed by another key than the trusted one of {node}", "LOG-KEY")
    if not isinstance(export["entries"], list) or not isinstance(export["heads"], list):
        raise broken(file, "is not an export of an evidence log", "LOG")
    log = _read_entries(file, node, permit_id, export["entries"])
    _check_heads(log, export["heads"], key)
    head = _signed(file, export["head"], key, HEAD_TYP, "LOG")
    expected = {"node": node, "size": log.size, "root": log.roots[log.size]}
    if {name: head.get(name) for name in expected} != expected:
        raise broken(file, f"the signed head covers {head.get('size')} entries, not these {log.size}", "LOG")
    statement = _signed(file, export["statement"], key, EXPORT_TYP, "LOG")
    if statement != {**expected, "permit_id": permit_id, "entries_sha256": digest_of(export["entries"])}:
        raise broken(file, "is not the export that the node signed: an entry was hidden or replaced", "LOG")
    return log


def _read_entries(file: str, node: str, permit_id: str, items: list[Any]) -> NodeLog:
    tree, leaves, roots, entries = Frontier(), [], [Frontier().root().hex()], []
    for index, item in enumerate(items):
        if isinstance(item, dict) and set(item) == {"leaf"}:
            leaf = _leaf(entry_place(file, index), item["leaf"])
        else:
            entry = _entry(entry_place(file, index), item, index, node)
            if entry.permit_id != permit_id and not entry.kind.startswith("node."):
                raise broken(entry_place(file, index), "belongs to another permit", "LOG")
            leaf = entry.leaf()
            entries.append(entry)
        tree.add(leaf)
        leaves.append(leaf)
        roots.append(tree.root().hex())
    return NodeLog(file, node, len(items), tuple(entries), tuple(leaves), tuple(roots))


def _entry(place: str, item: Any, index: int, node: str) -> LogEntry:
    try:
        entry = LogEntry.from_dict(item)
    except ValueError as error:
        raise broken(place, "is not a log entry", "LOG") from error
    if entry.index != index:
        raise broken(place, f"stands where entry {entry.index} should not: one was dropped, added or moved", "LOG")
    if entry.node != node:
        raise broken(place, "belongs to another node", "LOG")
    return entry


def _leaf(place: str, value: Any) -> bytes:
    if isinstance(value, str) and len(value) == 64 and value == value.lower():
        try:
            return bytes.fromhex(value)
        except ValueError:
            pass
    raise broken(place, "is not a leaf hash", "LOG")


def _check_heads(log: NodeLog, tokens: list[Any], key: PublicKey) -> None:
    """Signed heads, oldest first: the first that does not fit tells where the log was changed."""
    good = 0
    for token in tokens:
        head = _signed(log.file, token, key, HEAD_TYP, "LOG")
        size = head.get("size")
        if head.get("node") != log.node or type(size) is not int or size <= good:
            raise broken(log.file, "holds a signed head that is not in order", "LOG")
        if size > log.size:
            raise broken(log.file, f"ends at entry {log.size - 1}, but the node signed {size} entries: cut", "LOG")
        if head.get("root") != log.roots[size]:
            span = f"entry {good}" if size - good == 1 else f"entries {good} to {size - 1}"
            raise broken(f"{log.file} {span}", "was changed after the node signed it", "LOG")
        good = size


def _signed(file: str, token: Any, key: PublicKey, typ: str, code: str) -> dict[str, Any]:
    try:
        return key.verify(token if isinstance(token, str) else "", typ=typ)
    except VerificationError as error:
        raise broken(file, f"holds a {typ} that the node did not sign", code) from error


def _canonical(file: str, content: bytes) -> Any:
    try:
        value = read_json(content)
        again = canonical_bytes(value)
    except (ValueError, RecursionError, InputError) as error:
        raise broken(file, "is not JSON", "LOG") from error
    if again != content:
        raise broken(file, "is not canonical JSON (RFC 8785)", "LOG")
    return value
