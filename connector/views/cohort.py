"""A cohort: what a profile selects under a permit, as patient-major tensors in a folder of the visit.

``cohort.safetensors``, by the profile's layout. Tabular: ``values`` float32 [records, inputs] in each port's unit, NaN
missing, booleans 0/1, categories by index. Repeated and sequence: ``values`` float32 [records, steps, inputs], 0 where
missing, the oldest step first and the last one nearest to the record's day; ``mask`` uint8, 1 where known; ``times``
float32, days before the record's day, both of that shape. All: ``outcome`` float32 [records]; ``patient`` int64
[records], non-decreasing; ``bucket`` uint8 [patients].
``manifest.json`` stays in the node: its counts are not public.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import orjson

from connector.duckdb_lockdown import locked
from connector.fhir.persons import accounts_of
from connector.fhir.store import Generation, Store
from connector.views.cohort_specification import CohortSpecification
from connector.views.columns import Cells, Column, count_partial_dates, read_column
from connector.views.eligible_patients import make_records
from connector.views.inclusion import compile_inclusion
from connector.views.port_codings import PortCodings, read_port_codings
from connector.views.profile_views import View, derived_views, view_hash
from connector.views.store_tables import Relations, stored
from connector.views.tensor_file import Kind, Sealed, TensorFile
from vht_federate.components.contract import Profile
from vht_federate.errors import CohortError
from vht_federate.files import replace_file

__all__ = ["CohortManifest", "Outcomes", "build_cohort"]

Array = npt.NDArray[Any]
Outcomes = list[tuple[int, bool]]  # of each patient: the bucket, and whether any record has the outcome


@dataclass(frozen=True)
class CohortManifest:
    """What the cohort is. ``unit_table``: for each port, the units in the store with their (scale, offset) to its own.

    ``quarantined_values``: for each port, values in the store whose unit cannot become the port's; ``reread_values``:
    those whose unit the code map takes for another one. ``partial_dates``: for each port, the outcome among them, dates
    that are a year or a month alone, of everybody who is active and did not opt out. ``view_hash``:
    ``profile_views.view_hash`` of the views that say what was read, whose names are ``views``. ``code_maps``: the
    sha256 of each code map in force, by name; ``mapped_codes``: for each port that the store's codes are read for
    beside those it names, ``SYSTEM|CODE`` of each, with the maps by which it is (none: by the order of its own
    system). ``tensors``: type, shape and sha256 of each tensor; ``sha256`` is the file's.
    """

    schema_version: str
    visit: str
    component: str
    component_version: str
    profile: str
    inputs: tuple[str, ...]
    permitted: tuple[str, ...]
    views: tuple[str, ...]
    view_hash: str
    outcome: str
    patients: int
    records: int
    index: str
    landmarks: tuple[str, ...]
    horizon_years: int
    layout: str
    steps: int
    window_days: int
    sha256: str
    tensors: dict[str, dict[str, Any]]
    unit_table: dict[str, dict[str, tuple[float, float]]]
    quarantined_values: dict[str, int]
    reread_values: dict[str, int]
    partial_dates: dict[str, int]
    code_maps: dict[str, str]
    mapped_codes: dict[str, dict[str, list[str]]]


def build_cohort(
    store_dir: Path,
    specification: CohortSpecification,
    destination: Path,
    *,
    included: Callable[[list[str], list[int], dict[str, list[str]]], None] | None = None,
    outcomes: Callable[[Outcomes], None] | None = None,
    reader: Callable[[duckdb.DuckDBPyConnection, Generation], Relations] | None = None,
) -> CohortManifest:
    """Write the cohort of ``specification`` into ``destination`` (``visits/VISIT/cohort``).

    ``outcomes`` receives who has the outcome; ``included`` the keys of all patients with a record, their buckets, and
    of those with several ids the accounts (``accounts_of``) of their budgets; what they raise ends the cohort before
    anything is written. ``reader`` gives what is read in place of the store's tables. Raises ViewError where the
    outcome is not permitted or a column is unknown, CohortError VHT-COHORT-EMPTY-STORE before the first ingest.
    """
    permitted = specification.read_columns()
    component, cohort_view = specification.component, specification.cohort_view
    inclusion = None if cohort_view is None else compile_inclusion(dict(cohort_view))
    generation = Store(store_dir).current()
    if generation is None:
        raise CohortError("this node has ingested no data", code="VHT-COHORT-EMPTY-STORE", hint="vht node ingest")
    with locked([generation.folder.resolve()]) as connection:
        sources = [component.port(name).source for name in sorted(permitted)]
        codings = read_port_codings(connection, generation, sources, specification.maps)
        relations = reader(connection, generation) if reader else stored(generation)
        make_records(connection, generation, specification, relations=relations, inclusion=inclusion, codings=codings)
        if outcomes is not None:
            rows = connection.execute("SELECT any_value(bucket), bool_or(outcome) FROM record GROUP BY subject")
            outcomes([(bucket, truth) for bucket, truth in rows.fetchall()])
        if included is not None:
            subjects = connection.execute("SELECT DISTINCT subject, bucket FROM record").fetchall()
            persons = [subject for subject, _ in subjects]
            included(persons, [bucket for _, bucket in subjects], accounts_of(generation, frozenset(persons)))
        views = derived_views(component, specification.profile_name, permitted, codings)
        if cohort_view is not None:
            views["cohort"] = dict(cohort_view)
        return _write(connection, relations, specification, views, codings, destination)


def _write(
    connection: duckdb.DuckDBPyConnection,
    relations: Relations,
    specification: CohortSpecification,
    views: dict[str, View],
    codings: PortCodings,
    destination: Path,
) -> CohortManifest:
    records = connection.execute("SELECT person, bucket, outcome FROM record ORDER BY record").fetchnumpy()
    person, profile = np.asarray(records["person"], dtype=np.int64), specification.profile
    first = np.unique(person, return_index=True)[1]
    destination.mkdir(parents=True, exist_ok=True, mode=0o700)
    kinds = _kinds(profile, len(person), len(first))
    file = TensorFile(destination / "cohort.safetensors", kinds)
    file.arrays["outcome"][:] = records["outcome"]
    file.arrays["patient"][:] = person
    file.arrays["bucket"][:] = records["bucket"][first]
    if profile.layout == "tabular":
        file.arrays["values"][:] = np.nan
    columns: dict[str, Column] = {}
    permitted = specification.read_columns()
    for place, port in enumerate(specification.component.inputs(specification.profile_name)):
        if port.name in permitted:
            columns[port.name] = read_column(connection, relations, port, profile, len(person), codings)
            _fill(file.arrays, place, columns[port.name].cells, profile)
    partial = {
        name: count_partial_dates(connection, relations, specification.component.port(name), codings)
        for name in permitted
    }
    visit = destination.resolve().parent.name
    manifest = _manifest(specification, views, codings, visit, kinds, file.seal(), columns, partial)
    replace_file(destination / "manifest.json", orjson.dumps(asdict(manifest), option=orjson.OPT_INDENT_2))
    return manifest


def _kinds(profile: Profile, records: int, patients: int) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {
        "values": (np.float32, (records, *profile.shape)),
        "outcome": (np.float32, (records,)),
        "patient": (np.int64, (records,)),
        "bucket": (np.uint8, (patients,)),
    }
    if profile.layout != "tabular":
        kinds |= {"mask": (np.uint8, kinds["values"][1]), "times": (np.float32, kinds["values"][1])}
    return kinds


def _fill(arrays: dict[str, Array], place: int, cells: Cells, profile: Profile) -> None:
    if profile.layout == "tabular":
        arrays["values"][cells.record, place] = cells.value
        return
    known = ~np.isnan(cells.value)
    at = (cells.record[known], profile.steps - 1 - cells.back[known], place)
    arrays["values"][at], arrays["times"][at], arrays["mask"][at] = cells.value[known], cells.days[known], 1


def _manifest(
    specification: CohortSpecification,
    views: dict[str, View],
    codings: PortCodings,
    visit: str,
    kinds: dict[str, Kind],
    sealed: Sealed,
    columns: dict[str, Column],
    partial: dict[str, int],
) -> CohortManifest:
    component, profile = specification.component, specification.profile
    permitted = sorted(specification.read_columns())
    return CohortManifest(
        schema_version="3",
        visit=visit,
        component=component.name,
        component_version=component.version,
        profile=specification.profile_name,
        inputs=profile.inputs,
        permitted=tuple(permitted),
        views=tuple(views),
        view_hash=view_hash(list(views.values())),
        outcome=profile.outcome,
        patients=kinds["bucket"][1][0],
        records=kinds["outcome"][1][0],
        index=profile.index,
        landmarks=tuple(landmark.isoformat() for landmark in profile.landmarks),
        horizon_years=profile.horizon_years,
        layout=profile.layout,
        steps=profile.steps,
        window_days=profile.window_days,
        sha256=sealed.sha256,
        tensors={
            name: {"dtype": np.dtype(kind).name, "shape": shape, "sha256": sealed.tensors[name]}
            for name, (kind, shape) in kinds.items()
        },
        unit_table={
            name: {unit: (to.scale, to.offset) for unit, to in column.units.items()} for name, column in columns.items()
        },
        quarantined_values={name: column.unusable for name, column in columns.items() if column.unusable},
        reread_values={name: column.reread for name, column in columns.items() if column.reread},
        partial_dates={name: count for name, count in sorted(partial.items()) if count},
        code_maps=specification.maps.digests,
        mapped_codes={
            name: described for name in permitted if (described := codings.described(component.port(name).source))
        },
    )
