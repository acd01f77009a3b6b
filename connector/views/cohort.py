"""A cohort: what a profile selects under a permit, as patient-major tensors in a folder of the visit.

``cohort.safetensors``: ``values`` float32 [records, inputs] in each port's unit, NaN missing, booleans 0/1, categories
by index; ``outcome`` float32 [records]; ``patient`` int64 [records], non-decreasing; ``bucket`` uint8 [patients].
``manifest.json`` stays in the node: its counts are not public.
"""

import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import orjson
from safetensors.numpy import save

from connector.fhir.engine import locked
from connector.fhir.store import Generation, Store
from connector.views.columns import Column, read_column
from connector.views.people import make_records
from vht_federate.components.contract import Component
from vht_federate.errors import CohortError, ViewError

__all__ = ["CohortManifest", "build_cohort"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CohortManifest:
    """What the cohort is. ``unit_table``: for each port, the accepted units with their (scale, offset) to the port's.

    ``quarantined_values``: for each port, values in the store whose unit cannot become the port's.
    """

    schema_version: str
    visit: str
    component: str
    component_version: str
    profile: str
    inputs: tuple[str, ...]
    permitted: tuple[str, ...]
    outcome: str
    patients: int
    records: int
    index: str
    landmarks: tuple[str, ...]
    horizon_years: int
    sha256: str
    unit_table: dict[str, dict[str, tuple[float, float]]]
    quarantined_values: dict[str, int]


def build_cohort(
    store_dir: Path,
    component: Component,
    profile: str,
    *,
    columns: tuple[str, ...],
    excluded_subjects: Collection[str],
    destination: Path,
    pseudonym: Callable[[str], str] | None = None,
) -> CohortManifest:
    """Write the cohort of ``profile`` into ``destination`` (``visits/VISIT/cohort``).

    Patients are numbered in the order of their ``pseudonym`` under the permit (default: of their subject), so that
    equal numbers in cohorts of two permits mean nothing (Article 66).

    Data of a port outside ``columns`` is never read: its column is missing throughout. ``excluded_subjects`` are
    subject keys that opted out. Raises ViewError where the outcome is not permitted or a column is unknown,
    CohortError VHT-COHORT-EMPTY-STORE before the first ingest.
    """
    permitted = _permitted(component, profile, columns)
    generation = Store(store_dir).current()
    if generation is None:
        raise CohortError("this node has ingested no data", code="VHT-COHORT-EMPTY-STORE", hint="vht node ingest")
    with locked([generation.folder.resolve()]) as connection:
        make_records(
            connection,
            generation,
            component,
            profile,
            columns=permitted,
            excluded_subjects=excluded_subjects,
            pseudonym=pseudonym,
        )
        tensors, read = _tensors(connection, generation, component, profile, permitted)
    return _write(tensors, read, component, profile, permitted, destination)


def _permitted(component: Component, profile: str, columns: tuple[str, ...]) -> frozenset[str]:
    permitted = frozenset(columns) & frozenset(component.columns(profile))
    for name in columns:
        component.port(name)
    if component.profile(profile).outcome not in permitted:
        raise ViewError(
            "the permitted columns lack the profile's outcome",
            code="VHT-VIEW-OUTCOME",
            hint="a permit for this profile lists its outcome port among its columns",
        )
    return permitted


def _tensors(
    connection: duckdb.DuckDBPyConnection,
    generation: Generation,
    component: Component,
    profile: str,
    permitted: frozenset[str],
) -> tuple[dict[str, Array], dict[str, Column]]:
    people = connection.execute("SELECT person, bucket, outcome FROM record ORDER BY record").fetchnumpy()
    person, records = np.asarray(people["person"], dtype=np.int64), len(people["person"])
    inputs = component.inputs(profile)
    read = {port.name: read_column(connection, generation, port, records) for port in inputs if port.name in permitted}
    missing = np.full(records, np.nan, dtype=np.float32)
    values = [read[port.name].values if port.name in read else missing for port in inputs]
    first = np.unique(person, return_index=True)[1]
    tensors: dict[str, Array] = {
        "values": np.ascontiguousarray(np.stack(values, axis=1), dtype=np.float32),
        "outcome": np.asarray(people["outcome"], dtype=np.float32),
        "patient": person,
        "bucket": np.asarray(people["bucket"], dtype=np.uint8)[first],
    }
    return tensors, read


def _write(
    tensors: dict[str, Array],
    read: dict[str, Column],
    component: Component,
    profile: str,
    permitted: frozenset[str],
    destination: Path,
) -> CohortManifest:
    chosen, content = component.profile(profile), save(tensors)
    manifest = CohortManifest(
        schema_version="1",
        visit=destination.resolve().parent.name,
        component=component.name,
        component_version=component.version,
        profile=profile,
        inputs=chosen.inputs,
        permitted=tuple(sorted(permitted)),
        outcome=chosen.outcome,
        patients=len(tensors["bucket"]),
        records=len(tensors["outcome"]),
        index=chosen.index,
        landmarks=tuple(landmark.isoformat() for landmark in chosen.landmarks),
        horizon_years=chosen.horizon_years,
        sha256=hashlib.sha256(content).hexdigest(),
        unit_table={
            name: {unit: (to.scale, to.offset) for unit, to in column.units.items()} for name, column in read.items()
        },
        quarantined_values={name: column.unusable for name, column in read.items() if column.unusable},
    )
    destination.mkdir(parents=True, exist_ok=True, mode=0o700)
    _replace(destination / "cohort.safetensors", content)
    _replace(destination / "manifest.json", orjson.dumps(asdict(manifest), option=orjson.OPT_INDENT_2))
    return manifest


def _replace(path: Path, content: bytes) -> None:
    waiting = path.with_name(f".{path.name}.next")
    handle = os.open(waiting, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    waiting.replace(path)
