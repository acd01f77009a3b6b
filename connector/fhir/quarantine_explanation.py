"""Why was this line set aside? The source is read again where it still is, and FHIR's own models are asked about it.

Answers name elements and kinds of error, never a value: what an operator needs to mend a mapping, and no more.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from connector.fhir.line_reading import read_line
from connector.fhir.ndjson import Line
from connector.fhir.observation_values import Units
from connector.fhir.quarantine_reasons import reason
from connector.fhir.source_folder import read_file
from connector.fhir.typed_elements import Quarantine
from connector.fhir.validation import Finding, available, findings, is_known

__all__ = ["Explanation", "explain"]

FOUND, GONE, CHANGED = "found", "gone", "changed"


@dataclass(frozen=True)
class Explanation:
    """One entry of the quarantine (``file``, ``line``, ``kind``, ``reason``, ``path``), explained.

    ``source``: the line was ``found``, is ``gone`` with its file, or no longer says this (``changed``). ``type``: of
    the resource, where the line has one. ``at_character``: where JSON ends to be JSON. ``r4b``: what the models find;
    None where they were not asked: no source, no resource, or ``fhir.resources`` is not installed.
    """

    file: str
    line: int
    kind: str
    reason: str
    path: str
    source: str
    type: str | None = None
    at_character: int | None = None
    r4b: tuple[Finding, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        meaning = reason(self.reason)
        r4b_findings = None if self.r4b is None else [finding.to_dict() for finding in self.r4b]
        place = {name: getattr(self, name) for name in ("file", "line", "kind", "reason", "path", "source", "type")}
        return {
            **place,
            "what": meaning.says,
            "do": meaning.do,
            "beyond_r4": meaning.beyond_r4,
            "at_character": self.at_character,
            "r4b": r4b_findings,
        }


def explain(entries: Iterable[Mapping[str, Any]], folders: Sequence[Path], units: Units) -> Iterator[Explanation]:
    """Each entry of a quarantine, explained.

    Several of ``folders`` may have a file of an entry's name: it is explained by the first in which its line still
    says so, else by the first that has the line. Each file is read once.
    """
    by_file: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        by_file[entry["file"]].append(entry)
    for name, of_file in by_file.items():
        best = [_explained(entry, None, units) for entry in of_file]
        for path in dict.fromkeys(folder / name for folder in folders if (folder / name).is_file()):
            _search(path, of_file, best, units)
            if all(explanation.source == FOUND for explanation in best):
                break
        yield from best


def _search(path: Path, entries: Sequence[Mapping[str, Any]], best: list[Explanation], units: Units) -> None:
    """Put into ``best``, at an entry's place, what ``path`` says of it where that is better than what stands there."""
    waiting: dict[int, list[int]] = defaultdict(list)
    for place, explanation in enumerate(best):
        if explanation.source != FOUND:
            waiting[entries[place]["line"]].append(place)
    for line in read_file(path) if waiting else ():
        for place in waiting.pop(line.number, ()):
            explanation = _explained(entries[place], line, units)
            if explanation.source == FOUND or best[place].source == GONE:
                best[place] = explanation
        if not waiting:
            break


def _explained(entry: Mapping[str, Any], line: Line | None, units: Units) -> Explanation:
    place = {name: entry[name] for name in ("file", "line", "kind", "reason", "path")}
    if line is None:
        return Explanation(**place, source=GONE)
    if line.fault:
        return Explanation(**place, source=FOUND if line.fault == entry["reason"] else CHANGED)
    try:
        resource = orjson.loads(line.content)
    except orjson.JSONDecodeError as error:
        return Explanation(**place, source=FOUND, at_character=error.pos)
    kind = resource.get("resourceType") if isinstance(resource, dict) else None
    known_type = kind if isinstance(kind, str) and is_known(kind) else None
    return Explanation(
        **place,
        source=FOUND if _still(entry, line.content, units) else CHANGED,
        type=known_type,
        r4b=findings(known_type, line.content) if known_type and available() else None,
    )


def _still(entry: Mapping[str, Any], content: bytes, units: Units) -> bool:
    """Is the same still wrong? A contradiction shows in no line alone, so it stays one; so does a medication that was
    nowhere, while it is referred to."""
    if entry["reason"] == "conflicting-content":
        return True
    fault = (entry["reason"], entry["path"])
    try:
        reading = read_line(content, units).reading
        return fault in reading.verdict.rejected or (entry["reason"] == "unresolved" and bool(reading.medication_id))
    except Quarantine as verdict:
        return fault == (verdict.reason, verdict.path)
