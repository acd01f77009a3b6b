"""The newest state of the evidence log, held where the log is not: a log that was cut, or restored from an older copy,
is noticed.

The node's database keeps the newest signed head, in the transaction of each step; of what is logged outside of steps,
it may lack the newest few until the next entry. Whoever holds a receipt or a head of this node shows it at the next
contact (``compare``): it is of this log, or the log is not what it was. Then nothing more is logged, and so nothing
takes effect; the database keeps what was shown, and the node does not open again before its log holds it. The permit
issuer is such a party: it keeps the newest head of each node that asks it for the status list.
"""

import logging

from sqlalchemy import insert, select, update

from connector.store.database import Database
from connector.store.models import LogHeadRow
from vht_federate.domain.log_head import HEADER, KEY_HEADER, QUERY_TYP, read_log_state
from vht_federate.errors import UnavailableError, VerificationError
from vht_federate.evidence.entry import TreeHead
from vht_federate.evidence.log import EvidenceLog
from vht_federate.signing.keys import SigningKey

__all__ = ["LogHeads"]

log = logging.getLogger("vht.node.log")
_ROW = 1
_RESTORE = (
    "put back evidence/log.jsonl and evidence/heads.jsonl of the newest backup that has at least {size} entries, and "
    "keep the database; where there is none, nobody here knows what was spent since: tell the auditor and the issuer, "
    "and begin anew with 'vht node init' and a new evidence key"
)


class LogHeads:
    """The heads of one node's log; ``key`` signs them. Safe for threads."""

    def __init__(self, database: Database, evidence: EvidenceLog, key: SigningKey) -> None:
        self._database, self._evidence, self._key = database, evidence, key
        self._deposits = False

    def require_current(self) -> None:
        """The log holds what the database saw last; a database that saw nothing yet takes the log's newest head.

        Raises VerificationError VHT-VERIFY-LOG-BEHIND where the log is shorter, VHT-VERIFY-LOG-FORKED where it goes
        another way. From here on every new head is kept.
        """
        with self._database.read() as session:
            row = session.get(LogHeadRow, _ROW)
            seen = (row.size, row.root) if row is not None else None
        if seen is not None and (error := self._contradiction(*seen)) is not None:
            raise error
        head = self._evidence.head()
        if seen is None and head is not None:
            with self._database.write() as session:
                session.add(LogHeadRow(id=_ROW, size=head.size, root=head.root, token=head.token))
        self._evidence.on_head = self.keep

    def keep(self, head: TreeHead) -> None:
        """``head`` is on disk: into the transaction of the step that logged it, else into one of its own.

        Outside of a step it does not wait for other writers, and a database that fails here is no failure of what was
        logged: the next entry's head is kept in its place.
        """
        if self._database.written_here is not None:
            self._write(head.size, head.root, head.token)
        elif not self._database.written_elsewhere:
            try:
                with self._database.write():
                    self._write(head.size, head.root, head.token)
            except UnavailableError as error:
                log.warning("the newest head is not in the database yet", extra={"facts": {"code": error.code}})

    def settle(self) -> None:
        """Before the log closes: what was left out so far."""
        head = self._evidence.head()
        if head is not None and self._evidence.contradiction is None:
            self.keep(head)

    def compare(self, token: str) -> None:
        """Somebody shows a head or a receipt of this node. One that this node's key did not sign says nothing.

        Raises VerificationError VHT-VERIFY-LOG-BEHIND or VHT-VERIFY-LOG-FORKED; from then on nothing is logged here.
        """
        state = read_log_state(self._key.public, token)
        if state is None or (error := self._contradiction(state.size, state.root)) is None:
            return
        self._evidence.contradict(error)
        log.error("another party holds a newer state of the log", extra={"facts": {"code": error.code}})
        try:
            with self._database.write():
                self._write(state.size, state.root, token, newer_only=False)
        except UnavailableError:
            log.exception("what was shown could not be kept")
        raise error

    def headers(self) -> dict[str, str]:
        """What the issuer is sent with each question, so that it keeps the newest head of this log: at first a question
        for what it holds, and heads once that was compared (``deposited``). A log that went astray gives it none."""
        head = self._evidence.head() if self._deposits else None
        query = {"node": self._evidence.name}
        token = head.token if head is not None else self._key.sign(query, typ=QUERY_TYP)
        return {HEADER: token, KEY_HEADER: self._key.public.jwk()["x"]}

    def deposited(self, token: str | None) -> None:
        """What the issuer answered: the newest head that it held before. Raises as ``compare`` does."""
        if token:
            self.compare(token)
        self._deposits = True

    # --- parts --------------------------------------------------------------------------------------------------

    def _contradiction(self, size: int, root: str) -> VerificationError | None:
        held = len(self._evidence)
        if size > held:
            return VerificationError(
                f"the evidence log has {held} entries, but this node signed {size}: it was cut, or restored from an "
                "older copy",
                code="VHT-VERIFY-LOG-BEHIND",
                hint=_RESTORE.format(size=size),
            )
        if size and self._evidence.root_at(size) != root:
            return VerificationError(
                f"the evidence log's first {size} entries are not those that this node signed: it was restored from an "
                "older copy and went on from there, or was written anew",
                code="VHT-VERIFY-LOG-FORKED",
                hint=_RESTORE.format(size=size),
            )
        return None

    def _write(self, size: int, root: str, token: str, *, newer_only: bool = True) -> None:
        """Into the transaction that this thread is in. A head that is older than the one kept changes nothing."""
        session = self._database.written_here
        if session is None:
            raise RuntimeError("not in a writing transaction")
        change = update(LogHeadRow).where(LogHeadRow.id == _ROW)
        if newer_only:
            change = change.where(LogHeadRow.size < size)
        connection = session.connection()  # beside the session, whose pending rows are written when they would be
        values = {"size": size, "root": root, "token": token}
        changed = connection.execute(change.values(values)).rowcount
        if not changed and connection.execute(select(LogHeadRow.id)).first() is None:
            connection.execute(insert(LogHeadRow).values(id=_ROW, **values))
