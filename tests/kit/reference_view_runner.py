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
NO_ELEMENT: dict[str, Any] = {}
"""What the paths of a forEachOrNull look into where it has no element."""
_KEY = re.compile(r"(?:^|/)([A-Z][A-Za-z]+)/([A-Za-z0-9.-]{1,64})(?:/_history/[^/]+)?$")


def _reference_key(inputs: list[Any], wanted: Any = None) -> list[str]:
    name = getattr(wanted, "name", wanted)
    keys = []
    for reference in inputs:
        data = getattr(reference, "data", reference)
        text = data.get("reference", "")
        if text.startswith("urn:uuid:"):
            keys.append(text.removeprefix("urn:uuid:"))
        elif (match := _KEY.search(text)) and name in {None, match.group(1)}:
            keys.append(match.group(2))
    return keys


def _resource_key(inputs: list[Any]) -> list[str]:
    return [getattr(node, "data", node)["id"] for node in inputs]


_OPTIONS = {
    "userInvocationTable": {
        "getReferenceKey": {"fn": _reference_key, "arity": {0: [], 1: ["TypeSpecifier"]}},
        "getResourceKey": {"fn": _resource_key, "arity": {0: []}},
    }
}


@functools.cache
def _compiled(path: str) -> Callable[..., list[Any]]:
    evaluator: Callable[..., list[Any]] = compile_path(path, models["r4"], {**_OPTIONS, "returnRawData": True})
    return evaluator


def _plain(value: Any) -> Any:
    data = getattr(value, "data", value)
    return float(data) if isinstance(data, Decimal) else data


class _Runner:
    def __init__(self, view: dict[str, Any]) -> None:
        self.view = view
        self.constants = {
            constant["name"]: next(value for key, value in constant.items() if key.startswith("value"))
            for constant in view.get("constant", [])
        }

    def evaluate(self, path: str, item: Any, index: int) -> list[Any]:
        """fhirpathpy's own nodes: they know their type, so that ``value`` below them is still a choice."""
        if path == "$this":
            return [item]
        return list(_compiled(path)(item, {**self.constants, "rowIndex": index}))

    def truth(self, path: str, item: Any) -> bool:
        return [_plain(value) for value in self.evaluate(path, item, 0)] == [True]

    def select(self, select: dict[str, Any], item: Any, index: int) -> list[Row]:
        selected_rows = []
        for inner, position in self.items(select, item, index):
            parts: list[list[Row]] = []
            if "column" in select:
                parts.append([{column["name"]: self.cell(column, inner, position) for column in select["column"]}])
            parts += [self.select(nested, inner, position) for nested in select.get("select", [])]
            if "unionAll" in select:
                parts.append([row for branch in select["unionAll"] for row in self.select(branch, inner, position)])
            for combination in itertools.product(*parts):
                selected_rows.append({name: value for part in combination for name, value in part.items()})
        return selected_rows

    def items(self, select: dict[str, Any], item: Any, index: int) -> Iterator[tuple[Any, int]]:
        if "repeat" in select:
            yield from ((element, position) for position, element in enumerate(self.walk(select["repeat"], item)))
        elif "forEach" in select:
            elements = self.evaluate(select["forEach"], item, index)
            yield from ((element, position) for position, element in enumerate(elements))
        elif "forEachOrNull" in select:
            elements = self.evaluate(select["forEachOrNull"], item, index) or [NO_ELEMENT]
            yield from ((element, position) for position, element in enumerate(elements))
        else:
            yield item, index

    def walk(self, paths: list[str], item: Any) -> Iterator[Any]:
        for path in paths:
            for element in self.evaluate(path, item, 0):
                yield element
                yield from self.walk(paths, element)

    def cell(self, column: dict[str, Any], item: Any, index: int) -> Any:
        values = [_plain(value) for value in self.evaluate(column["path"], item, index)]
        if column.get("collection"):
            return None if item is NO_ELEMENT else values
        if len(values) > 1:
            raise ValueError(f"{column['name']} has {len(values)} values")
        return values[0] if values else None


def rows(view: dict[str, Any], resources: list[dict[str, Any]]) -> list[Row]:
    """All rows of ``view``. Raises: ValueError where a column has more than one value."""
    runner = _Runner(view)
    view_rows = []
    for resource in resources:
        if resource["resourceType"] != view["resource"]:
            continue
        if all(runner.truth(clause["path"], resource) for clause in view.get("where", [])):
            parts = [runner.select(select, resource, 0) for select in view["select"]]
            view_rows += [
                {name: value for part in combination for name, value in part.items()}
                for combination in itertools.product(*parts)
            ]
    return view_rows
