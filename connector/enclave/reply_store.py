"""What a visit already answered: an exact retry gets the same bytes, and no noise is drawn a second time.

One SQLite file in the visit's folder. A row is written when a round begins; a round that began and was never released
is spent, and cannot be asked again.
"""

import json
import sqlite3
from pathlib import Path
from typing import Any

from vht_federate.errors import RefusedError
from vht_federate.framing import Reply
from vht_federate.signing.strict_json import read_json

__all__ = ["Replies"]

_TABLE = """CREATE TABLE IF NOT EXISTS rounds (
    job TEXT NOT NULL, round INTEGER NOT NULL, request_sha256 TEXT NOT NULL,
    result TEXT, tensors BLOB, PRIMARY KEY (job, round)) STRICT"""


class Replies:
    """The record of one visit's rounds."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(_TABLE)

    def close(self) -> None:
        self._db.close()

    def find(self, job: str, round_: int, request_sha256: str) -> Reply | None:
        """The answer to exactly this request, or None where the round is new.

        Raises RefusedError VHT-REFUSED-REPLAY for another request of a round that began, VHT-REFUSED-SPENT for one
        that began and was never released.
        """
        row = self._db.execute(
            "SELECT request_sha256, result, tensors FROM rounds WHERE job = ? AND round = ?", (job, round_)
        ).fetchone()
        if row is None:
            return None
        if row[0] != request_sha256:
            raise RefusedError(
                "this round was answered for another request",
                code="VHT-REFUSED-REPLAY",
                hint="each round is run once; only an exact repetition is answered again",
            )
        if row[1] is None:
            raise RefusedError(
                "this round began and its result was never released; what it drew is spent", code="VHT-REFUSED-SPENT"
            )
        return Reply(read_json(row[1]), row[2])

    def begun(self, job: str, round_: int, request_sha256: str) -> None:
        self._db.execute(
            "INSERT INTO rounds (job, round, request_sha256) VALUES (?, ?, ?)", (job, round_, request_sha256)
        )

    def released(self, job: str, round_: int, reply: Reply) -> None:
        self._db.execute(
            "UPDATE rounds SET result = ?, tensors = ? WHERE job = ? AND round = ?",
            (json.dumps(reply.result, allow_nan=False), reply.tensors, job, round_),
        )

    def results(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Results of all released rounds."""
        rows = self._db.execute("SELECT job, round, result FROM rounds WHERE result IS NOT NULL ORDER BY job, round")
        return {(job, round_): read_json(result) for job, round_, result in rows}
