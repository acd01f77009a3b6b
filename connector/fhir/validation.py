"""What FHIR's own models say of a resource: a sample of every intake, and each line that was set aside.

``fhir.resources`` has R4B and no R4; for the types that a node reads they differ in nothing that it reads. It validates
thousands of resources a second where an intake reads tens of thousands, so it looks at a sample when the store is
complete, and what it finds changes no verdict. It is loaded when it is first asked (extra ``fhir``).
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache
from heapq import heappush, heappushpop
from typing import Any

from connector.fhir.resources import TABLES

__all__ = ["FINDINGS", "SAMPLE_SIZE", "Finding", "Sample", "TypeSample", "available", "findings", "is_known"]

SAMPLE_SIZE = 20
LARGEST_SAMPLED = 256 << 10  # bytes of a line; the sample is held in memory
MOST_FINDINGS = 20  # of one resource, and of one type in the account

FINDINGS = {
    "unknown-element": "has an element that R4B does not know",
    "missing": "is missing",
    "type": "has the wrong JSON type",
    "format": "is spelled in a way that R4B does not allow",
    "code": "is outside a required set",
    "length": "is too short or too long",
    "rule": "breaks a rule of its type, such as two of one choice",
    "unreadable": "cannot be read by the models at all",
}
_KINDS = {
    "extra_forbidden": "unknown-element",
    "missing": "missing",
    "model_field_validation.missing": "missing",
    "json_invalid": "type",  # of a nested element: no object
    "string_pattern_mismatch": "format",
    "enum": "code",
    "literal_error": "code",
}


@dataclass(frozen=True, order=True)
class Finding:
    """``kind`` is one of ``FINDINGS``.

    ``path`` is made of elements that R4B knows, without indices; an unknown element is named by its parent alone,
    because its name comes from the data.
    """

    path: str
    kind: str

    def to_dict(self) -> dict[str, str]:
        return {"path": self.path, "kind": self.kind, "says": FINDINGS[self.kind]}


@dataclass(frozen=True)
class TypeSample:
    """``sampled`` resources of a type were validated, ``faulty`` have findings; how many have each."""

    type: str
    sampled: int
    faulty: int
    findings: tuple[tuple[Finding, int], ...]

    def to_dict(self) -> dict[str, Any]:
        finding_counts = [{**finding.to_dict(), "resources": count} for finding, count in self.findings]
        return {"sampled": self.sampled, "faulty": self.faulty, "findings": finding_counts}


@cache
def available() -> bool:
    """Is ``fhir.resources`` installed?"""
    try:
        import fhir.resources.R4B  # noqa: F401
    except ImportError:
        return False
    return True


@lru_cache(maxsize=256)
def _model(kind: str) -> Any:
    from fhir.resources.R4B import get_fhir_model_class

    try:
        return get_fhir_model_class(kind)
    except KeyError:
        return None


def is_known(kind: str) -> bool:
    """Is ``kind`` a resource type? Where ``fhir.resources`` is not installed: one that a node reads."""
    return kind in TABLES or (available() and _model(kind) is not None)


def findings(kind: str, content: bytes) -> tuple[Finding, ...]:
    """What R4B's model of ``kind``, a known type, says against ``content`` (JSON); nothing where all is well."""
    try:
        _model(kind).model_validate_json(content)
    except Exception as error:  # some faults make the models fail in ways of their own, such as a KeyError
        list_errors = getattr(error, "errors", None)
        if list_errors is None:
            return (Finding(kind, "unreadable"),)
        details = list_errors(include_url=False, include_input=False, include_context=False)
        return tuple(sorted({_finding(kind, detail["type"], detail["loc"]) for detail in details})[:MOST_FINDINGS])
    return ()


def _finding(kind: str, error: str, place: tuple[int | str, ...]) -> Finding:
    names = [part for part in place if isinstance(part, str)]
    word = _KINDS.get(error)
    if word is None:
        word = "type" if error.endswith("_type") else "length" if "too_" in error else "format" if names else "rule"
    known_names = names[:-1] if word == "unknown-element" else names
    return Finding(".".join([kind, *known_names]), word)


class Sample:
    """Lines of each type to validate: the first ``size``, and ``size`` by the least key of their content, wherever they
    stand. The same files give the same sample."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._first: dict[str, list[bytes]] = {}
        self._least: dict[str, list[tuple[int, bytes]]] = {}  # a heap, greatest key first

    def offer(self, kind: str, content_key: str, content: bytes) -> None:
        """A line of a type, with the hexadecimal key of its content; most are looked at no further than that."""
        rank, least = -int(content_key, 16), self._least.setdefault(kind, [])
        full = len(least) >= self._size
        if (full and (not least or rank <= least[0][0])) or len(content) > LARGEST_SAMPLED:
            return
        if any(rank == other_rank for other_rank, _ in least):
            return
        first = self._first.setdefault(kind, [])
        if len(first) < self._size:
            first.append(content)
        if full:
            heappushpop(least, (rank, content))
        else:
            heappush(least, (rank, content))

    def validated(self) -> tuple[TypeSample, ...] | None:
        """What the models say, type by type; None where ``fhir.resources`` is not installed or nothing is sampled."""
        if not self._size or not available():
            return None
        samples = []
        for kind, first in sorted(self._first.items()):
            chosen = {*first, *(content for _, content in self._least[kind])}
            per_resource = [findings(kind, content) for content in chosen]
            counts = Counter(finding for resource_findings in per_resource for finding in resource_findings)
            common = tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_FINDINGS])
            samples.append(TypeSample(kind, len(per_resource), sum(map(bool, per_resource)), common))
        return tuple(samples)
