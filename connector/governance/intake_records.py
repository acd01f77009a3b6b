"""What was taken in goes into the database and the evidence log: by folder, or from a FHIR server."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from connector.fhir import ingest
from connector.fhir.deletions import Deletions
from connector.fhir.validation import SAMPLE_SIZE
from connector.governance.operator_accounts import Actor, system_user
from connector.store import Database
from connector.store.models import IngestRow
from vht_federate.errors import VhtError
from vht_federate.evidence.events import DatasetIngested
from vht_federate.evidence.log import EvidenceLog

__all__ = ["Intakes"]

log = logging.getLogger("vht.node.intakes")
SHOWN = ("values", "reasons", "value_reasons", "dangling_references", "sample", "ignored", "folder", "unfilled")
COUNTED = ("files", "lines", "accepted", "quarantined", "duplicate", "deleted")


@dataclass(frozen=True)
class Intakes:
    """The intake of one dataset. ``store`` is the folder of its FHIR store, ``unfilled`` says which ports of installed
    components the data can never fill."""

    dataset: str
    store: Path
    key: bytes
    database: Database
    evidence: EvidenceLog
    clock: Callable[[], datetime]
    sample_size: int = SAMPLE_SIZE
    unfilled: Callable[[], list[dict[str, Any]]] = list

    def take(
        self,
        folder: Path,
        *,
        replace: bool = False,
        deletions: Deletions | None = None,
        source: str | None = None,
        actor: Actor | None = None,
    ) -> dict[str, Any]:
        """Take in ``folder``, or ``replace`` what is held by it; what ``deletions`` list goes. The report's numbers."""
        report = ingest(
            folder,
            self.store,
            node_key=self.key,
            dataset=self.dataset,
            replace=replace,
            deletions=deletions,
            sample_size=self.sample_size,
        ).to_dict()
        located = {**report, "folder": str(folder.resolve())}
        return report | {"unfilled": self.record(located, replace=replace, source=source, actor=actor)}

    def record(
        self, report: dict[str, Any], *, replace: bool = False, source: str | None = None, actor: Actor | None = None
    ) -> list[dict[str, Any]] | None:
        """An intake that has happened; ``source`` names the FHIR server that it came from.

        The ports that its data can never fill, for the operator; None where that cannot be told: the data are taken in
        all the same.
        """
        unfilled = self._unfilled()
        report = report | {"unfilled": unfilled}
        totals = {name: report[name] for name in COUNTED} | ({"source": source} if source else {})
        saved_report = totals | {name: report[name] for name in SHOWN if name in report}
        with self.database.write() as session:
            session.add(IngestRow(dataset_id=self.dataset, at=self.clock(), report=saved_report))
            session.flush()
            actor = actor or system_user()
            self.evidence.record(DatasetIngested(dataset=self.dataset, replaces=replace, **totals, **actor.facts()))
        log.info("ingested", extra={"facts": totals})
        return unfilled

    def _unfilled(self) -> list[dict[str, Any]] | None:
        try:
            return self.unfilled()
        except VhtError as error:
            log.warning("which ports the data fill cannot be told", extra={"facts": {"code": error.code}})
            return None
