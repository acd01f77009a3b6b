"""First pass of an ingest: what was read, line by line, as Parquet in the work folder. Memory holds one batch."""

from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from connector.fhir.persons import LINKS
from connector.fhir.resources import MEDICATION, MEDICATION_COLUMNS, TABLES
from connector.fhir.store import table_name

__all__ = ["SCHEMAS", "Staging"]

BATCH_ROWS = 5_000
_TYPES: dict[str, Any] = {
    "uint8": pa.uint8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "date32": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
_PLACE = (("file", "int32"), ("line", "int64"))
_KEYS = (("resource", "string"), ("subject", "string"))
_COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    **{table_name(kind): (*_PLACE, *_KEYS, *columns) for kind, columns in TABLES.items()},
    table_name(MEDICATION): (*_PLACE, ("resource", "string"), *MEDICATION_COLUMNS),
    "line": (
        *_PLACE,
        ("type", "string"),
        ("resource", "string"),
        ("content", "string"),
        ("accepted", "int32"),
        ("quarantined", "int32"),
        ("updated", "timestamp"),
        ("version", "int64"),
        ("mistaken", "bool"),
        ("subject", "string"),
    ),
    LINKS: (
        *_PLACE,
        ("resource", "string"),
        ("survivor", "string"),
        ("survivor_bucket", "uint8"),
        ("replaced", "string"),
        ("replaced_bucket", "uint8"),
    ),
    "deletion": (
        ("type", "string"),
        ("resource", "string"),
        ("subject", "string"),
        ("moment", "timestamp"),
        ("version", "int64"),
    ),
    "fault": (*_PLACE, ("kind", "string"), ("reason", "string"), ("path", "string")),
}
SCHEMAS: dict[str, Any] = {
    name: pa.schema([pa.field(column, _TYPES[kind]) for column, kind in columns]) for name, columns in _COLUMNS.items()
}


class Staging:
    """Append rows; ``close`` leaves one Parquet file per table in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in SCHEMAS}
        self._writers = {name: pq.ParquetWriter(self.path(name), schema) for name, schema in SCHEMAS.items()}

    def path(self, table: str) -> Path:
        return self.folder / f"staged-{table}.parquet"

    def add(self, table: str, row: tuple[date | datetime | str | float | bool | None, ...]) -> None:
        rows = self._rows[table]
        rows.append(row)
        if len(rows) >= BATCH_ROWS:
            self._flush(table)

    def close(self) -> None:
        for name, writer in self._writers.items():
            self._flush(name)
            writer.close()

    def _flush(self, table: str) -> None:
        rows, schema = self._rows[table], SCHEMAS[table]
        if not rows:
            return
        columns = [pa.array(cells, field.type) for cells, field in zip(zip(*rows, strict=True), schema, strict=True)]
        self._writers[table].write_table(pa.Table.from_arrays(columns, schema=schema))
        rows.clear()
