"""JSON from outside, however deep it is nested: ``orjson`` reads about 1,000 levels and writes about 250.

What cannot be written again is set aside as ``nested-too-deep``, and takes nothing else along.
"""

import re
from typing import Any

import orjson

from connector.fhir.typed_elements import Quarantine

__all__ = ["digestible", "parsed", "parsed_in_parts", "written"]

TOO_DEEP = "nested-too-deep"
LEVELS = 900  # of a container of many resources: below what can be read, far above what can be digested
_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def parsed(content: bytes) -> Any:
    """Raises Quarantine ``nested-too-deep`` or ``malformed-json``."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        deep = error.msg.lower().startswith(("depth", "recursion"))
        raise Quarantine(TOO_DEEP if deep else "malformed-json", "") from None


def parsed_in_parts(content: bytes) -> Any:
    """A container of many resources. One that is nested too deep to be read is cut off below ``LEVELS``: it stays too
    deep to be digested, and its neighbours are read. Raises Quarantine ``malformed-json``."""
    try:
        return parsed(content)
    except Quarantine as verdict:
        if verdict.reason != TOO_DEEP:
            raise
    return parsed(_cut(content))


def _cut(content: bytes) -> bytes:
    """``content`` with a 0 for each array and object below ``LEVELS``."""
    kept, depth, start = [], 0, 0
    for match in _MARKS.finditer(content):
        mark = match[0]
        if mark in (b"[", b"{"):
            depth += 1
            if depth == LEVELS + 1:
                kept.append(content[start : match.start()])
        elif mark in (b"]", b"}"):
            if depth == LEVELS + 1:
                kept.append(b"0")
                start = match.end()
            depth -= 1
    return b"".join([*kept, content[start:] if depth <= LEVELS else b""])


def digestible(resource: Any) -> bytes:
    """One spelling for each content, as bytes to make a digest of. Raises Quarantine ``nested-too-deep``."""
    try:
        return orjson.dumps(resource, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # of what JSON was parsed to, nothing else than its depth is refused
        raise Quarantine(TOO_DEEP, "") from None


def written(value: Any) -> bytes:
    """What was parsed, as JSON again, at any depth."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return _spelled(value)


def _spelled(value: Any) -> bytes:
    pieces: list[bytes] = []
    waiting = [value]  # bytes are JSON already
    while waiting:
        node = waiting.pop()
        if type(node) is dict:
            parts = [part for key, item in node.items() for part in (b",", orjson.dumps(key), b":", item)]
            waiting += [b"}", *reversed(parts[1:]), b"{"]
        elif type(node) is list:
            parts = [part for item in node for part in (b",", item)]
            waiting += [b"]", *reversed(parts[1:]), b"["]
        else:
            pieces.append(node if type(node) is bytes else orjson.dumps(node))
    return b"".join(pieces)
