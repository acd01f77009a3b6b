"""A node's append-only evidence log: a Merkle tree (RFC 9162) in a folder, each state of it signed by the node.

Files of the folder:

``log.jsonl``     one entry per line, canonical JSON (RFC 8785); the leaf is the line without its newline
``heads.jsonl``   one signed tree head per line (JWT ``vht-tree-head+jwt``: node, size, root, time), line n for size n
``lock``          held (flock) by the one process that may append

``append`` returns when the entry and its head are on disk. What a crash left half written (a torn line, or a last
entry without its head) had not taken effect, since nobody was told, and is dropped on open; any other disagreement
refuses to open. Each entry carries a salt, so that the bare leaf hash of an entry that an auditor may not see cannot
be guessed back to its content.
"""

import fcntl
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from vht_federate.errors import InputError, UnavailableError, VerificationError
from vht_federate.evidence.entry import EXPORT_SCHEMA, EXPORT_TYP, HEAD_TYP, RECEIPT_TYP, LogEntry, TreeHead
from vht_federate.evidence.events import Event
from vht_federate.evidence.merkle import Frontier, hash_leaf
from vht_federate.files import flush_to_disk, sync
from vht_federate.signing.canonical import canonical_bytes, digest_of
from vht_federate.signing.keys import SigningKey
from vht_federate.signing.strict_json import read_json

__all__ = ["EXPORT_SCHEMA", "HEAD_TYP", "RECEIPT_TYP", "EvidenceLog", "LogEntry", "TreeHead"]


def _salt() -> str:
    return secrets.token_hex(16)


class EvidenceLog:
    """The log in ``folder``, appended to by one process. Safe to call from several threads.

    Raises VerificationError VHT-VERIFY-LOG where the files disagree with each other or with ``key``, and
    UnavailableError VHT-UNAVAILABLE-LOG where another process holds the folder.
    """

    def __init__(
        self,
        folder: Path,
        key: SigningKey,
        name: str,
        clock: Callable[[], datetime],
        *,
        salt: Callable[[], str] = _salt,
    ) -> None:
        self.folder, self.name = folder, name
        self._key, self._clock, self._salt = key, clock, salt
        self._guard = threading.RLock()
        self._tree = Frontier()
        self._entries: list[LogEntry] = []
        self._heads: list[str] = []
        self._head: TreeHead | None = None
        self._broken = False
        self.contradiction: VerificationError | None = None  # then nothing more is added
        self.on_head: Callable[[TreeHead], None] | None = None  # told of each new head, after it is on disk
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        try:
            self._load()
            self._log_file = (folder / "log.jsonl").open("ab")
            self._heads_file = (folder / "heads.jsonl").open("ab")
            sync(folder)
        except BaseException:
            self._lock.close()
            raise

    # --- reading ------------------------------------------------------------------------------------------------

    def head(self) -> TreeHead | None:
        """The latest signed tree head; None while the log is empty."""
        with self._guard:
            return self._head

    def root_at(self, size: int) -> str | None:
        """Root, in hex, of the first ``size`` entries, as it was signed; None where the log has fewer, or of none."""
        with self._guard:
            if not 0 < size <= len(self._heads):
                return None
            return str(self._key.public.verify(self._heads[size - 1], typ=HEAD_TYP)["root"])

    def entries(self) -> Iterator[LogEntry]:
        """All entries, oldest first, as they stood when called."""
        with self._guard:
            snapshot = list(self._entries)
        return iter(snapshot)

    def __len__(self) -> int:
        with self._guard:
            return len(self._entries)

    def export(self, permit_id: str) -> dict[str, Any]:
        """What an auditor of ``permit_id`` receives: JSON whose Merkle root can be recomputed.

        ``entries`` has one item per leaf, in order: the full entry for those of this permit and for kind ``node.*``,
        else ``{"leaf": hex}``. ``heads`` are the signed heads right after each entry of this permit, which receipts
        cite; ``head`` is the latest. ``statement`` (JWT ``vht-log-export+jwt``) is the node's signature over what is
        shown, so that nobody on the way can hide an entry behind its hash.
        """
        with self._guard:
            items: list[dict[str, Any]] = []
            heads: list[str] = []
            for entry, head in zip(self._entries, self._heads, strict=True):
                under_permit = entry.permit_id == permit_id
                open_ = under_permit or entry.kind.startswith("node.")
                items.append(entry.as_dict() if open_ else {"leaf": entry.leaf().hex()})
                if under_permit:
                    heads.append(head)
            claims = {
                "node": self.name,
                "permit_id": permit_id,
                "size": self._tree.size,
                "root": self._tree.root().hex(),
                "entries_sha256": digest_of(items),
            }
            return {
                "schema_version": EXPORT_SCHEMA,
                "node": self.name,
                "permit_id": permit_id,
                "public_key": self._key.public.jwk(),
                "entries": items,
                "head": self._heads[-1] if self._heads else None,
                "heads": heads,
                "statement": self._key.sign(claims, typ=EXPORT_TYP),
            }

    # --- writing ------------------------------------------------------------------------------------------------

    def record(self, event: Event, *, permit_id: str | None = None, visit: str | None = None) -> LogEntry:
        """``append`` for an event of a known kind."""
        return self.append(event.entry_kind, event.body(), permit_id=permit_id, visit=visit)

    def append(
        self, kind: str, body: dict[str, Any], *, permit_id: str | None = None, visit: str | None = None
    ) -> LogEntry:
        """Write one entry and its signed head to disk, then return. What it records may take effect afterwards.

        Raises InputError for a body outside JSON, and OSError where the disk refuses: then the log accepts nothing
        more until it is opened again. Raises what ``contradict`` was given.
        """
        entry, head = self._appended(kind, body, permit_id, visit)
        if self.on_head is not None:
            self.on_head(head)
        return entry

    def contradict(self, error: VerificationError) -> None:
        """This log is not the one that its node signed: nothing more is added to it."""
        with self._guard:
            self.contradiction = self.contradiction or error

    def _appended(
        self, kind: str, body: dict[str, Any], permit_id: str | None, visit: str | None
    ) -> tuple[LogEntry, TreeHead]:
        with self._guard:
            if self.contradiction is not None:
                raise self.contradiction
            if self._broken:
                raise UnavailableError(
                    "the evidence log could not be written before, so nothing may take effect",
                    code="VHT-UNAVAILABLE-LOG",
                    hint="free the disk, then restart this node",
                )
            time = self._clock().isoformat()
            entry = LogEntry(len(self._entries), time, self.name, kind, permit_id, visit, body, self._salt())
            line = canonical_bytes(entry.as_dict())
            entry = LogEntry.from_dict(read_json(line))  # later changes to `body` must not reach the log
            self._broken = True
            self._write(self._log_file, line)
            self._tree.add(hash_leaf(line))
            head = self._sign_head(time)
            self._write(self._heads_file, head.token.encode())
            self._broken = False
            self._entries.append(entry)
            self._heads.append(head.token)
            self._head = head
            return entry, head

    def receipt(self, entry: LogEntry) -> str:
        """A signed promise to a peer that ``entry`` is in the log: JWT ``vht-receipt+jwt``.

        Claims: node, index, kind, permit_id, visit, leaf (hex), body, and size, root, time of the head right after
        the entry. An auditor who holds it notices a log that was cut or rewritten later.
        """
        with self._guard:
            head = self._key.public.verify(self._heads[entry.index], typ=HEAD_TYP)
        claims = {
            "node": self.name,
            "index": entry.index,
            "kind": entry.kind,
            "permit_id": entry.permit_id,
            "visit": entry.visit,
            "leaf": entry.leaf().hex(),
            "body": entry.body,
            "size": head["size"],
            "root": head["root"],
            "time": head["time"],
        }
        return self._key.sign(claims, typ=RECEIPT_TYP)

    def close(self) -> None:
        """Release the folder."""
        with self._guard:
            self._broken = True
            self._log_file.close()
            self._heads_file.close()
            self._lock.close()

    def __enter__(self) -> "EvidenceLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- files --------------------------------------------------------------------------------------------------

    def _take_lock(self) -> BinaryIO:
        file = (self.folder / "lock").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise UnavailableError(
                f"another process writes to the evidence log of {self.name}",
                code="VHT-UNAVAILABLE-LOG",
                hint="one process per node; stop the other first",
            ) from error
        return file

    def _write(self, file: BinaryIO, line: bytes) -> None:
        file.write(line + b"\n")
        flush_to_disk(file)

    def _sign_head(self, time: str) -> TreeHead:
        head = TreeHead(self.name, self._tree.size, self._tree.root().hex(), time, token="")
        return replace(head, token=self._key.sign(head.claims(), typ=HEAD_TYP))

    def _load(self) -> None:
        lines = _whole_lines(self.folder / "log.jsonl")
        heads = [line.decode("ascii", "replace") for line in _whole_lines(self.folder / "heads.jsonl")]
        if len(lines) == len(heads) + 1:  # died between the entry and its head
            _cut_last_line(self.folder / "log.jsonl", len(lines.pop()) + 1)
        if len(lines) != len(heads):
            raise self._disagree(f"{len(lines)} entries but {len(heads)} heads")
        for index, (line, head) in enumerate(zip(lines, heads, strict=True)):
            self._entries.append(self._parse(index, line))
            self._head = self._check_head(head)
        self._heads = heads

    def _parse(self, index: int, line: bytes) -> LogEntry:
        try:
            entry = LogEntry.from_dict(read_json(line))
            again = canonical_bytes(entry.as_dict())
        except (ValueError, InputError) as error:
            raise self._disagree(f"entry {index} is not an entry") from error
        if entry.index != index or entry.node != self.name or again != line:
            raise self._disagree(f"entry {index} is out of place or was rewritten")
        self._tree.add(hash_leaf(line))
        return entry

    def _check_head(self, token: str) -> TreeHead:
        try:
            claims = self._key.public.verify(token, typ=HEAD_TYP)
            head = TreeHead(**claims, token=token)
        except (VerificationError, TypeError) as error:
            raise self._disagree(f"head {self._tree.size} is not signed by this node's key") from error
        if (head.node, head.size, head.root) != (self.name, self._tree.size, self._tree.root().hex()):
            raise self._disagree(f"head {self._tree.size} does not cover the entries before it")
        return head

    def _disagree(self, what: str) -> VerificationError:
        return VerificationError(
            f"the evidence log of {self.name} does not hold: {what}",
            code="VHT-VERIFY-LOG",
            hint="keep the folder as it is and call the auditor; the log is never repaired by hand",
        )


def _whole_lines(path: Path) -> list[bytes]:
    """Lines of ``path``; a last line without its newline is cut off the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    torn = len(data) - (data.rfind(b"\n") + 1)
    if torn:
        _cut_last_line(path, torn)
        data = data[:-torn]
    return data.split(b"\n")[:-1]


def _cut_last_line(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - length)
        flush_to_disk(file)
