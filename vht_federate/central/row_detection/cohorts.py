"""The row-level files of a synthetic cohort, cell by cell against the codebook that every node approved.

Whatever the codebook does not describe is refused: another column, a value between the codebook's values, an
identifier, a resource without the tags of test data, an element that our writer never writes.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vht_federate.errors import PublicationError
from vht_federate.packaging.codebook import Codebook, Column
from vht_federate.packaging.cohort import FHIR_TYPES, PROVENANCE_TAG, TEST_DATA_TAG
from vht_federate.signing.strict_json import read_json

__all__ = ["look_at_cohort"]

_BOTH = {"resourceType", "id", "meta"}
_LINKED = _BOTH | {"subject"}
_ELEMENTS = {
    "Patient": _BOTH | {"active", "gender", "birthDate"},
    "Observation": _LINKED
    | {"status", "code", "effectiveDateTime", "valueQuantity", "valueBoolean", "valueCodeableConcept"},
    "Condition": _LINKED | {"clinicalStatus", "code", "onsetDateTime"},
    "MedicationRequest": _LINKED | {"status", "intent", "medicationCodeableConcept", "authoredOn"},
}
_INNER = frozenset(["system", "code", "text", "coding", "value", "unit", "reference", "security", "tag"])
_ID = re.compile(r"synthetic-\d{1,9}(-[a-z0-9-]{1,64})?")
_LINE = 1 << 15  # characters
_MOMENTS = ("effectiveDateTime", "onsetDateTime", "authoredOn")


def look_at_cohort(folder: Path, book: Codebook, rows: int) -> None:
    """Raises PublicationError VHT-PUBLICATION-COLUMNS, -VALUES, -ROWS or -SYNTHETIC, naming file and line."""
    from_csv = _read_csv(folder / "data.csv", book)
    if len(from_csv) != rows:
        raise _refused("VALUES", "data.csv has another number of rows than its manifest")
    _compare_parquet(folder / "data.parquet", book, from_csv)
    for path in sorted((folder / "fhir").glob("*")):
        if path.suffix != ".ndjson" or path.stem not in FHIR_TYPES:
            raise _refused("ROWS", f"fhir/{path.name} does not belong to a synthetic cohort")
        _look_at_resources(path, rows, len(book.order))


Row = tuple[float | str | None, ...]


def _read_csv(path: Path, book: Codebook) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            if tuple(next(reader, ())) != book.order:
                raise _refused("COLUMNS", "data.csv has columns that the codebook does not describe")
            checks = [_Cells(book.columns[name]) for name in book.order]
            rows = []
            for number, cells in enumerate(reader, start=2):
                if len(cells) != len(checks):
                    raise _refused("COLUMNS", f"data.csv line {number} has another number of cells")
                rows.append(_row(checks, cells, book, f"data.csv line {number}"))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _refused("VALUES", "data.csv is not CSV in UTF-8") from error


def _row(checks: "list[_Cells]", cells: Iterable[Any], book: Codebook, where: str) -> Row:
    row = []
    for name, check, cell in zip(book.order, checks, cells, strict=True):
        value, legal = check.read(cell)
        if not legal:
            raise _refused("VALUES", f"{where}, column {name}: a value that the codebook does not know")
        row.append(value)
    return tuple(row)


class _Cells:
    """Reads and judges one column's cells; each distinct cell is judged once."""

    def __init__(self, column: Column) -> None:
        self._column = column
        self._known: dict[Any, tuple[float | str | None, bool]] = {}

    def read(self, cell: Any) -> tuple[float | str | None, bool]:
        """The value (None: missing) and whether the codebook knows it."""
        if cell not in self._known:
            self._known[cell] = self._judge(cell)
        return self._known[cell]

    def _judge(self, cell: Any) -> tuple[float | str | None, bool]:
        column = self._column
        if cell is None or cell == "":
            return None, column.missing
        if column.kind == "category":
            return str(cell), cell in column.levels
        if column.kind == "boolean":
            word = str(cell).lower()
            return word, word in column.levels
        try:
            number = float(cell)
        except (TypeError, ValueError):
            return None, False
        on_grid = abs(round(number, column.decimals) - number) < 1e-9
        return number, on_grid and column.edges[0] <= number <= column.edges[-1]


def _compare_parquet(path: Path, book: Codebook, rows: list[Row]) -> None:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            if tuple(file.schema_arrow.names) != book.order:
                raise _refused("COLUMNS", "data.parquet has columns that the codebook does not describe")
            if file.metadata.num_rows != len(rows):
                raise _refused("VALUES", "data.parquet has other rows than data.csv")
            if set(file.schema_arrow.metadata or {}) - {b"pandas"}:
                raise _refused("VALUES", "data.parquet carries metadata of its own")
            columns = [column.to_pylist() for column in file.read().columns]
    except (OSError, ArrowException) as error:
        raise _refused("VALUES", "data.parquet is not Parquet") from error
    checks = [_Cells(book.columns[name]) for name in book.order]
    for number, (cells, expected) in enumerate(zip(zip(*columns, strict=True), rows, strict=True), start=1):
        if _row(checks, cells, book, f"data.parquet row {number}") != expected:
            raise _refused("VALUES", f"data.parquet row {number} differs from data.csv")


def _look_at_resources(path: Path, rows: int, columns: int) -> None:
    """Every line one resource of the file's type, tagged, with our elements only and public dates."""
    moments: set[str] = set()
    texts: set[str] = set()
    for number, line in _lines(path):
        where = f"fhir/{path.name} line {number}"
        try:
            resource = read_json(line)
        except (ValueError, RecursionError) as error:
            raise _refused("ROWS", f"{where} is not JSON") from error
        if not isinstance(resource, dict) or resource.get("resourceType") != path.stem:
            raise _refused("ROWS", f"{where} is not a {path.stem}")
        meta = resource.get("meta")
        if meta != {"security": [TEST_DATA_TAG], "tag": [PROVENANCE_TAG]}:
            raise _refused("SYNTHETIC", f"{where} is not marked as synthetic test data, and only so")
        if set(resource) - _ELEMENTS[path.stem] or set(_inner_keys(resource)) - _INNER:
            raise _refused("ROWS", f"{where} has elements that a synthetic cohort does not have")
        if not _ID.fullmatch(str(resource.get("id"))) or not _subject_fits(resource, path.stem, rows):
            raise _refused("ROWS", f"{where} has an identifier that no synthetic row has")
        moments.update(str(resource[name]) for name in _MOMENTS if name in resource)
        texts.update(_texts(resource))
        if len(moments) > 2 or len(texts) > columns:
            raise _refused("ROWS", f"fhir/{path.name} has dates or texts of its own")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LINE), ""), start=1):
                if len(line) == _LINE:
                    raise _refused("ROWS", f"fhir/{path.name} line {number} is longer than any resource of a cohort")
                yield number, line
    except UnicodeDecodeError as error:
        raise _refused("ROWS", f"fhir/{path.name} is not UTF-8") from error


def _inner_keys(resource: dict[str, Any]) -> Iterator[str]:
    for name, value in resource.items():
        if name != "meta":
            waiting = [value]
            while waiting:
                element = waiting.pop()
                if isinstance(element, dict):
                    yield from element
                    waiting.extend(element.values())
                elif isinstance(element, list):
                    waiting.extend(element)


def _subject_fits(resource: dict[str, Any], kind: str, rows: int) -> bool:
    number = str(resource.get("id")).split("-")[1]
    if not 1 <= int(number) <= rows:
        return False
    if kind == "Patient":
        birth_date = resource.get("birthDate")
        return birth_date is None or re.fullmatch(r"\d{4}-01-01", str(birth_date)) is not None
    return resource.get("subject") == {"reference": f"Patient/synthetic-{number}"}


def _texts(resource: dict[str, Any]) -> Iterator[str]:
    for name in ("code", "medicationCodeableConcept"):
        concept = resource.get(name)
        if isinstance(concept, dict) and "text" in concept:
            yield str(concept["text"])


def _refused(code: str, what: str) -> PublicationError:
    return PublicationError(
        what,
        code=f"VHT-PUBLICATION-{code}",
        hint="the platform takes synthetic cohorts as our writer makes them; rows of patients never leave a node",
    )
