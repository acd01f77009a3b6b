"""Pulls from the small FHIR server, without waiting."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from connector.fhir.sources import (
    Pulled,
    SourceSettings,
    download,
    pulling,
)
from connector.fhir.sources.retry import RetryPolicy
from kit.bulk_data_server import BulkServer
from kit.fhir_resources import observation, patient

__all__ = ["NEW", "OLD", "Serve", "everything", "held", "pull", "quick", "resources", "source"]


OLD, NEW = "2020-01-01T00:00:00+00:00", "2040-01-01T00:00:00+00:00"


Serve = Callable[..., BulkServer]


def held(patients: int = 5, observations: int = 300) -> dict[str, list[dict[str, Any]]]:
    meta = {"meta": {"lastUpdated": OLD}}
    return {
        "Patient": [patient(number, **meta) for number in range(patients)],
        "Observation": [observation(f"o{number}", number % patients, **meta) for number in range(observations)],
    }


def source(server: BulkServer, **changes: Any) -> SourceSettings:
    fields = {"name": "ehr", "base_url": server.base, "types": ("Patient", "Observation")}
    return SourceSettings.model_validate(fields | changes)


def quick(waits: list[float] | None = None, deadline_s: float = 600.0) -> RetryPolicy:
    """A pace that does not wait, and remembers how long it would have."""
    return RetryPolicy(deadline_s, sleep=(waits if waits is not None else []).append, jitter=lambda: 0.5)


def pull(settings: SourceSettings, home: Path, **more: Any) -> Pulled:
    with pulling(home):
        return download(settings, home, pace=more.pop("pace", quick()), **more)


def resources(pulled: Pulled) -> list[tuple[str, str]]:
    lines = [line for path in sorted(pulled.folder.iterdir()) for line in path.read_bytes().splitlines()]
    return sorted((resource["resourceType"], resource["id"]) for resource in map(json.loads, lines))


def everything(server: BulkServer) -> list[tuple[str, str]]:
    return sorted((kind, resource["id"]) for kind, several in server.resources.items() for resource in several)
