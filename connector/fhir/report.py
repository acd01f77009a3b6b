"""The account of an ingest: every line and every value, once."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["FileReport", "IngestReport"]


@dataclass(frozen=True)
class FileReport:
    """``state``: ok, empty, or the fault that cut the file short (gzip-truncated, gzip-corrupt, unreadable-file)."""

    name: str
    lines: int
    accepted: int
    quarantined: int
    duplicate: int
    state: str = "ok"


@dataclass(frozen=True)
class IngestReport:
    """``lines == accepted + quarantined + duplicate``. Values are those of accepted lines.

    ``reasons`` counts quarantined lines by reason, ``value_reasons`` quarantined values; ``by_type`` accepted lines
    by resource type; ``patients`` is how many patients the store now holds; ``changed`` says whether it changed.
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
    by_file: tuple[FileReport, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """JSON, with ``files`` counted and ``values`` grouped."""
        plain = asdict(self)
        plain["files"] = len(self.by_file)
        plain["by_file"] = list(plain["by_file"])
        plain["values"] = {"accepted": plain.pop("values_accepted"), "quarantined": plain.pop("values_quarantined")}
        return plain


def sorted_counts(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
