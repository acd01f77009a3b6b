"""Rows of a view into a file: CSV, Parquet or NDJSON, written beside the target and moved there when complete."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from vht_federate.errors import InputError

__all__ = ["FORMATS", "write_rows"]

Batches = Iterator[pa.RecordBatch]


def write_rows(target: Path, schema: pa.Schema, batches: Batches) -> int:
    """Write all rows to ``target`` in the format of its suffix; the number of rows. A failure leaves no target.

    Raises: InputError VHT-INPUT-FORMAT for another suffix.
    """
    writer = FORMATS.get(target.suffix)
    if writer is None:
        raise InputError(f"cannot write {target.suffix or 'a file without suffix'}", code="VHT-INPUT-FORMAT",
                         hint=f"use one of: {', '.join(FORMATS)}")  # fmt: skip
    partial = target.with_name(f".{target.name}.partial")
    try:
        rows = writer(partial, schema, batches)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return rows


def _parquet(path: Path, schema: pa.Schema, batches: Batches) -> int:
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _csv(path: Path, schema: pa.Schema, batches: Batches) -> int:
    rows = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(schema.names)
        for batch in batches:
            writer.writerows([_cell(row[name]) for name in schema.names] for row in batch.to_pylist())
            rows += batch.num_rows
    return rows


def _cell(value: Any) -> Any:
    """Lists and booleans as JSON; an absent value as an empty cell."""
    return orjson.dumps(value).decode() if isinstance(value, list | bool) else value


def _ndjson(path: Path, schema: pa.Schema, batches: Batches) -> int:
    rows = 0
    with path.open("wb") as file:
        for batch in batches:
            file.writelines(orjson.dumps(row) + b"\n" for row in batch.select(schema.names).to_pylist())
            rows += batch.num_rows
    return rows


FORMATS: dict[str, Callable[[Path, pa.Schema, Batches], int]] = {
    ".csv": _csv,
    ".ndjson": _ndjson,
    ".parquet": _parquet,
}
