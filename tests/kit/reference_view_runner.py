"""A slow view runner to compare with: SQL on FHIR v2's processing algorithm, row by row, over fhirpathpy."""

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from fhirpathpy import compile as compile_path
from fhirpathpy.models import models

__all__ = ["rows"]

Row = dict[str, Any]
_KEY = re.compile(r"(?:^|/)([A-Z][A-Za-z]+)/([A-Za-z0-9.-]{1,64})(?:/_history/[^/]+)?$")


def _reference_key(inputs: list[Any], wanted: Any = None) -> list[str]:
    name = getattr(wanted, "name", wanted)
    found = []
    for reference in inputs:
        data = getattr(reference, "data", reference)
        text = data.get("reference", "")
        if text.startswith("urn:uuid:"):
            found.append(text.removeprefix("urn:uuid:"))
        elif (match := _KEY.search(text)) and name in {None, match.group(1)}:
            found.append(match.group(2))
    return found


def _resource_key(inputs: list[Any]) -> list[str]:
    return [getattr(one, "data", one)["id"] for one in inputs]


_OPTIONS = {
    "userInvocationTable": {
        "getReferenceKey": {"fn": _reference_key, "arity": {0: [], 1: ["TypeSpecifier"]}},
        "getResourceKey": {"fn": _resource_key, "arity": {0: []}},
    }
}


@functools.cache
def _compiled(path: str) -> Callable[..., list[Any]]:
    made: Callable[..., list[Any]] = compile_path(path, models["r4"], {**_OPTIONS, "returnRawData": True})
    return made


def _plain(value: Any) -> Any:
    data = getattr(value, "data", value)
    return float(data) if isinstance(data, Decimal) else data


class _Runner:
    def __init__(self, view: dict[str, Any]) -> None:
        self.view = view
        self.constants = {
            one["name"]: next(value for key, value in one.items() if key.startswith("value"))
            for one in view.get("constant", [])
        }

    def evaluate(self, path: str, item: Any, index: int) -> list[Any]:
        """fhirpathpy's own nodes: they know their type, so that ``value`` below them is still a choice."""
        if path == "$this":
            return [item]
        return list(_compiled(path)(item, {**self.constants, "rowIndex": index}))

    def truth(self, path: str, item: Any) -> bool:
        return [_plain(one) for one in self.evaluate(path, item, 0)] == [True]

    def select(self, select: dict[str, Any], item: Any, index: int) -> list[Row]:
        made = []
        for inner, position in self.items(select, item, index):
            parts: list[list[Row]] = []
            if "column" in select:
                parts.append([{one["name"]: self.cell(one, inner, position) for one in select["column"]}])
            parts += [self.select(one, inner, position) for one in select.get("select", [])]
            if "unionAll" in select:
                parts.append([row for one in select["unionAll"] for row in self.select(one, inner, position)])
            for combination in itertools.product(*parts):
                made.append({name: value for part in combination for name, value in part.items()})
        return made

    def items(self, select: dict[str, Any], item: Any, index: int) -> Iterator[tuple[Any, int]]:
        if "repeat" in select:
            yield from ((one, position) for position, one in enumerate(self.walk(select["repeat"], item)))
        elif "forEach" in select:
            found = self.evaluate(select["forEach"], item, index)
            yield from ((one, position) for position, one in enumerate(found))
        elif "forEachOrNull" in select:
            found = self.evaluate(select["forEachOrNull"], item, index) or [{}]
            yield from ((one, position) for position, one in enumerate(found))
        else:
            yield item, index

    def walk(self, paths: list[str], item: Any) -> Iterator[Any]:
        for path in paths:
            for one in self.evaluate(path, item, 0):
                yield one
                yield from self.walk(paths, one)

    def cell(self, column: dict[str, Any], item: Any, index: int) -> Any:
        found = [_plain(one) for one in self.evaluate(column["path"], item, index)]
        if column.get("collection"):
            return found
        if len(found) > 1:
            raise ValueError(f"{column['name']} has {len(found)} values")
        return found[0] if found else None


def rows(view: dict[str, Any], resources: list[dict[str, Any]]) -> list[Row]:
    """All rows of ``view``. Raises: ValueError where a column has more than one value."""
    runner = _Runner(view)
    made = []
    for resource in resources:
        if resource["resourceType"] != view["resource"]:
            continue
        if all(runner.truth(one["path"], resource) for one in view.get("where", [])):
            parts = [runner.select(one, resource, 0) for one in view["select"]]
            made += [
                {name: value for part in combination for name, value in part.items()}
                for combination in itertools.product(*parts)
            ]
    return made
