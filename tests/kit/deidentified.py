"""Resources as a permit's holder sees them, and where in them a value may be put."""

import json
from collections.abc import Iterator
from datetime import date
from typing import Any

from connector.governance.deidentification import Deidentifier
from kit.fhir_resources import condition, observation, patient, prescription

__all__ = ["NOW", "ONE", "OTHER", "SECRET", "deidentify", "encounter", "every_type", "paths", "placed"]


NOW = date(2026, 3, 1)


ONE, OTHER = Deidentifier(b"1" * 32, now=NOW), Deidentifier(b"2" * 32, now=NOW)


SECRET = "Grace Hopper 555-0142"


def deidentify(resource: dict[str, Any], deidentifier: Deidentifier = ONE) -> dict[str, Any]:
    deidentified = deidentifier.resource(resource)
    assert deidentified is not None
    return deidentified


def encounter(**more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Encounter",
        "id": "e1",
        "status": "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
        "subject": {"reference": "Patient/p1"},
        "period": {"start": "2009-05-06T08:00:00+02:00", "end": "2009-05-06T09:30:17+02:00"},
    } | more


def every_type() -> list[dict[str, Any]]:
    return [
        patient(),
        observation("o1"),
        condition("c1", "38341003", "2009-05-06"),
        prescription("m1", "C09AA05", "2009-05-06"),
        encounter(),
    ]


def paths(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of every object in ``node``."""
    if isinstance(node, dict):
        yield at
        for name, value in node.items():
            yield from paths(value, (*at, name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from paths(value, (*at, index))


def placed(node: Any, at: tuple[Any, ...], name: str, value: Any) -> Any:
    copy = json.loads(json.dumps(node))
    inner = copy
    for step in at:
        inner = inner[step]
    inner[name] = value
    return copy
