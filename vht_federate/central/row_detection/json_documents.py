"""Is a JSON document a table of people? By its shape: a study's own documents have few numbers in any one place."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vht_federate.central.row_detection.texts import holds_table, is_row
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.signing.strict_json import StrictJsonError, read_json

__all__ = ["JsonInspection", "look_at_json", "parsed"]

_PERSONAL_NAMES = ("family", "given", "birthDate", "deceasedDateTime", "maritalStatus", "photo", "mrn", "ssn")
_PERSONAL = frozenset((*_PERSONAL_NAMES, "telecom", "address", "postalCode", "contact"))
_MARKS = 500_000  # commas and brackets: a parsed value takes up to 100 bytes for each
_IN_ONE_PLACE = 256  # numbers of one list or object; a histogram has at most 200 bins
_ROWS = 20  # alike parts that could each be a person
_PER_ROW = 3  # numbers of such a part
_TEXT = 1 << 16
_EVENT = frozenset(PrivacyEvent.model_fields)


@dataclass(frozen=True)
class JsonInspection:
    """What a look at a JSON document found. ``rows`` says how it looks like rows, if it does."""

    rows: str | None = None
    personal: bool = False


def look_at_json(text: str, *, signed_by_nodes: bool = False) -> JsonInspection | None:
    """None where ``text`` is no JSON object or list.

    Of logs and replies, which nodes signed or acknowledged and whose form the verification knows, only the elements'
    names are judged.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return None
    if sum(text.count(mark) for mark in ",[{") > _MARKS:
        return JsonInspection("holds more values than any document of a study")
    try:
        value = json.loads(text)
        read_json(text)
    except RecursionError:
        return JsonInspection("is nested deeper than any document of a study")
    except StrictJsonError:
        return JsonInspection("is JSON that can be read in two ways")
    except ValueError:
        return None
    keys = set(_keys(value))
    if "resourceType" in keys:
        return JsonInspection("holds FHIR resources")
    if keys & _PERSONAL:
        return JsonInspection(personal=True)
    if not signed_by_nodes and any(_is_table(part) for part in _containers(value)):
        return JsonInspection("holds a table of numbers, by row or by column")
    return JsonInspection()


def parsed(text: str) -> Any:
    """An object or a list, or None. For single lines."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _is_table(container: Any) -> bool:
    """A column, rows side by side, rows written as texts, or a whole table as one text."""
    parts = _parts(container)
    if sum(isinstance(part, bool) or _is_number(part) for part in parts) > _IN_ONE_PLACE:
        return True
    texts = [part for part in parts if isinstance(part, str)]
    texts += container if isinstance(container, dict) else ()
    if sum(map(is_row, texts)) >= _ROWS or any(len(text) > _TEXT or _is_long_table(text) for text in texts):
        return True
    alike = [part for part in parts if isinstance(part, dict | list) and not _is_event(part)]
    return sum(sum(map(_is_number, _parts(part))) >= _PER_ROW for part in alike) >= _ROWS


def _is_long_table(text: str) -> bool:
    return "\n" in text and holds_table(text)


def _is_event(part: Any) -> bool:
    return isinstance(part, dict) and part.keys() <= _EVENT


def _is_number(value: Any) -> bool:
    """Also one that is written as a text."""
    if isinstance(value, str) and len(value) <= 24:
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parts(container: Any) -> list[Any]:
    return list(container.values()) if isinstance(container, dict) else list(container)


def _containers(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        container = waiting.pop()
        yield container
        waiting.extend(part for part in _parts(container) if isinstance(part, dict | list))


def _keys(value: Any) -> Iterator[str]:
    for container in _containers(value):
        if isinstance(container, dict):
            yield from container
