"""A hospital's own code maps: what lies in the node's folder ``code-maps``, beside the maps that ship.

``NAME.toml`` has the form of a shipped map. ``NAME.csv`` has a head line ``system,code,means_system,means_code`` and a
line for each code: that code means the other, or something narrower. Both are in UTF-8.
"""

import csv
import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from connector.fhir.codes.concept_maps import ConceptMap, Mapping, invalid_map, parse_concept_map
from vht_federate.signing.canonical import sha256_hex

__all__ = ["HEAD", "read_hospital_maps"]

HEAD = ("system", "code", "means_system", "means_code")
MOST_BYTES = 64 * 1024 * 1024
KEPT = 16


def read_hospital_maps(folder: Path) -> tuple[ConceptMap, ...]:
    """The maps in ``folder``, by name; none where there is no such folder.

    Raises InputError VHT-INPUT-CODE-MAP for a file that is not a map, which names its lines or fields and no value.
    """
    if not folder.is_dir():
        return ()
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return tuple(_parsed(path.name, _content(path)) for path in paths)


def _content(path: Path) -> bytes:
    if path.suffix not in (".toml", ".csv") or not path.is_file():
        raise invalid_map(path.name, "is no TOML or CSV file")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise invalid_map(path.name, "is larger than 64 MiB")
        return path.read_bytes()
    except OSError as error:
        raise invalid_map(path.name, "cannot be read") from error


@lru_cache(maxsize=KEPT)
def _parsed(file_name: str, content: bytes) -> ConceptMap:
    """A pharmacy's map has a hundred thousand lines: the same bytes are read once."""
    return (
        parse_concept_map(content, file_name, own=True) if file_name.endswith(".toml") else _of_csv(content, file_name)
    )


def _of_csv(content: bytes, file_name: str) -> ConceptMap:
    name = file_name.rpartition(".")[0]
    try:
        return ConceptMap(
            name=name,
            sha256=sha256_hex(content),
            own=True,
            title=f"Code map {name} of this hospital",
            version=sha256_hex(content)[:8],
            licence="the hospital's own",
            source=(file_name,),
            mapping=tuple(_mappings(content, file_name)),
        )
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in error.errors())
        raise invalid_map(file_name, f"does not fit at {places}") from error


def _mappings(content: bytes, file_name: str) -> Iterator[Mapping]:
    try:
        rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        if tuple(cell.strip() for cell in next(rows, [])) != HEAD:
            raise invalid_map(file_name, f"its head line is not {','.join(HEAD)}")
        for row in rows:
            if not row:
                continue
            if len(row) != len(HEAD):
                raise invalid_map(file_name, f"line {rows.line_num} has {len(row)} cells, not {len(HEAD)}")
            system, code, means_system, means_code = (cell.strip() for cell in row)
            try:
                yield Mapping(system=system, codes=(code,), means=f"{means_system}|{means_code}")
            except ValidationError as error:
                fields = ", ".join(sorted({str(item["loc"][0]) for item in error.errors()}))
                raise invalid_map(file_name, f"line {rows.line_num} does not fit at {fields}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise invalid_map(file_name, "is not CSV in UTF-8") from error
