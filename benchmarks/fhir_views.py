"""SQL on FHIR views on real Observations, one thread: against DuckDB's own scan, fhirpathpy and fhir.resources.

The view is the shipped ``observation_codings``. Its peers do the same work on the same file in the same run: DuckDB
reads the same columns and hands them over; fhirpathpy evaluates the same paths row by row; fhir.resources validates
each resource into its model, from which one would then still have to pick. The slow peers run on a part of the file.
"""

import io
import re
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from benchmarks.table import Row
from connector.views.sql.compilation import compile_view
from connector.views.sql.execution import locked
from connector.views.sql.shipped import shipped

__all__ = ["measure"]

ROOT = Path(__file__).parent.parent
EXPORT = ROOT.parent / "shared" / "data" / "gsd_r4_ndjson.tgz"
ROUNDS = 7
SLOW = 400


def _observations(folder: Path) -> Path:
    with tarfile.open(EXPORT) as archive:
        member = next(entry for entry in archive if Path(entry.name).name == "Observation.ndjson")
        source = archive.extractfile(member)
        assert source is not None
        target = folder / "Observation.ndjson"
        target.write_bytes(source.read())
    return target


def _seconds(work: Callable[[], int], expected: int) -> float:
    began = time.process_time()
    assert work() == expected
    return time.process_time() - began


def _scan(statements: tuple[str, ...], query: str, path: Path) -> Callable[[], int]:
    """Run ``query`` on a fresh, locked connection and take all rows as Arrow."""

    def work() -> int:
        with locked([str(path)], threads=1) as connection:
            for statement in statements:
                connection.execute(statement)
            return sum(batch.num_rows for batch in connection.sql(query).to_arrow_reader(65536))

    return work


def _raw(query: str) -> str:
    """DuckDB's own scan with the view's explicit columns, no more."""
    match = re.search(r"read_json\(.*?\}\)", query, re.DOTALL)
    assert match is not None
    return f"SELECT * FROM {match.group()}"  # noqa: S608


def _oracle(view: dict[str, Any]) -> Callable[[list[dict[str, Any]]], int]:
    sys.path.insert(0, str(ROOT / "tests"))
    from kit.reference_view_runner import rows  # the slow runner that the tests compare with

    return lambda resources: len(rows(view, resources))


def _validation() -> Callable[[list[bytes]], int]:
    from fhir.resources.R4B.observation import Observation

    return lambda lines: sum(1 for line in lines if Observation.model_validate_json(line))


def _pairs(first: Callable[[], float], second: Callable[[], float]) -> Iterator[tuple[float, float]]:
    for _ in range(ROUNDS):
        yield first(), second()


def measure() -> list[Row]:
    """Observations per second of processor time, so that a busy machine weighs on all alike; medians over rounds."""
    if not EXPORT.is_file():
        print(f"skipped: {EXPORT} is not on this machine")
        return []
    pa.set_cpu_count(1)
    view = shipped("observation_codings")
    plan = compile_view(view)
    with tempfile.TemporaryDirectory() as folder:
        path = _observations(Path(folder))
        with path.open("rb") as file:
            lines = [line.rstrip(b"\n") for line in io.BufferedReader(file)]
        query = plan.query([str(path)])
        ours = _scan(plan.macros, query, path)
        raw = _scan((), _raw(query), path)
        rows = 99_999
        pairs = list(_pairs(lambda: _seconds(ours, rows), lambda: _seconds(raw, len(lines))))
        part = lines[:: len(lines) // SLOW]
        oracle, validate = _oracle(view), _validation()
        resources = [orjson.loads(line) for line in part]
        oracle(resources[:1])  # paths are parsed once, outside the measurement
        validate(part[:1])
        began = time.process_time()
        oracle(resources)
        between = time.process_time()
        validate(part)
        ended = time.process_time()
    speed = len(lines) / statistics.median(seconds for seconds, _ in pairs)
    raw_speed = len(lines) / statistics.median(seconds for _, seconds in pairs)
    oracle_speed, model_speed = len(part) / (between - began), len(part) / (ended - between)
    unit = "Observations/s"
    return [
        Row("long_view_vs_raw_scan", speed, unit, "ratio >= 0.6", speed / raw_speed >= 0.6,
            "DuckDB raw scan, same columns", raw_speed),
        Row("long_view_vs_fhirpathpy", speed, unit, "ratio >= 50", speed / oracle_speed >= 50,
            "fhirpathpy, same view", oracle_speed),
        Row("long_view_vs_fhir_resources", speed, unit, "ratio >= 50", speed / model_speed >= 50,
            "fhir.resources R4B validation", model_speed),
    ]  # fmt: skip
