"""JSON that is read one way only: whoever reads the same bytes holds the same value, as signatures and digests assume.

A name that stands twice in an object is the gap between two readers: one takes the first, another the last (RFC 8259,
section 4). What has no canonical form (RFC 8785) is refused with it: NaN and infinities, numbers beyond a double, half
of a surrogate pair, bytes that are not UTF-8.
"""

import json
import math
from typing import Any, NoReturn

__all__ = ["StrictJsonError", "read_json"]


class StrictJsonError(ValueError):
    """Not JSON, or JSON of which two readers may hold different values."""


def read_json(content: bytes | str) -> Any:
    """The value of ``content``. Raises StrictJsonError, and RecursionError as ``json.loads`` does."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair has no UTF-8
    except StrictJsonError:
        raise
    except ValueError as error:
        raise StrictJsonError("not JSON") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise StrictJsonError("a name stands twice in one object")
    return members


def _constant(name: str) -> NoReturn:
    raise StrictJsonError(f"{name} is no JSON")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictJsonError("a number is beyond a double")
    return value
