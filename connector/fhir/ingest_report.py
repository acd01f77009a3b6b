"""The account of an ingest: every line and every value, once."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from connector.fhir.source_folder import Ignored
from connector.fhir.validation import TypeSample

__all__ = ["FileReport", "IngestReport"]


@dataclass(frozen=True)
class FileReport:
    """``state``: ok, empty, or the fault that cut the file short (gzip-truncated, zstd-corrupt, …)."""

    name: str
    lines: int
    accepted: int
    quarantined: int
    duplicate: int
    state: str = "ok"
    superseded: int = 0


@dataclass(frozen=True)
class IngestReport:
    """``lines == accepted + quarantined + duplicate + superseded``. Values are those of accepted lines.

    ``reasons`` counts quarantined lines by reason, ``value_reasons`` quarantined values; ``by_type`` accepted lines
    by resource type; ``superseded`` are versions older than what is held, or than its deletion; ``replaced``
    are resources of the store that gave way to a newer version, ``deleted`` those that a source deleted;
    ``entered_in_error`` are accepted lines that say so of themselves; ``patients`` is how many patients the store now
    holds, each once however many ids they have; ``changed`` says whether it changed. ``sample`` is what FHIR's models
    say of a few accepted lines of each type, and counts nowhere else; None where they were not asked. ``ignored`` lists
    what lay in the folder and was not read: it has no line. ``dangling_references`` counts accepted resources that
    refer to a Patient or an Encounter that the store does not hold, by element: they are kept.
    """

    dataset: str
    lines: int
    accepted: int
    quarantined: int
    duplicate: int
    values_accepted: int
    values_quarantined: int
    reasons: dict[str, int]
    value_reasons: dict[str, int]
    by_type: dict[str, int]
    patients: int
    changed: bool
    superseded: int = 0
    replaced: int = 0
    entered_in_error: int = 0
    deleted: int = 0
    by_file: tuple[FileReport, ...] = field(default=())
    sample: tuple[TypeSample, ...] | None = None
    ignored: tuple[Ignored, ...] = ()
    dangling_references: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON, with ``files`` counted and ``values`` grouped."""
        plain = asdict(self)
        plain["files"] = len(self.by_file)
        plain["by_file"], plain["ignored"] = list(plain["by_file"]), list(plain["ignored"])
        plain["sample"] = None if self.sample is None else {sample.type: sample.to_dict() for sample in self.sample}
        plain["values"] = {"accepted": plain.pop("values_accepted"), "quarantined": plain.pop("values_quarantined")}
        return plain


def sorted_counts(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
