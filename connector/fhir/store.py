"""The node's store: generations of Parquet parts, and one pointer to the generation that counts.

    STORE/CURRENT                      name of the generation in force, replaced atomically
    STORE/generations/000001/
        observation-000001.parquet     one part per ingest and type; older parts are hard links, or rewritten
                                       without what a newer version replaced
        resource-000001.parquet        (type, resource, content, dataset, updated, version, replaced): what is held,
                                       and how many versions it replaced
        patient_link-000001.parquet    (resource, survivor, replaced, and the bucket of each): which Patient said that
        person-000001.parquet          of each id that a link names: whose it is, in every generation anew
        quarantine.jsonl               what was not read, and why
        counts.json                    resources by type
    STORE/ingesting/                   work in progress, worthless after a crash

A generation is complete and on disk before CURRENT names it, so a crash leaves the last complete one.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from connector.fhir.disclosure_control import SMALLEST_CELL, disclosable_count
from connector.fhir.resources import TABLES
from vht_federate.errors import UnavailableError
from vht_federate.files import replace_file, sync

__all__ = ["Generation", "Store", "dataset_summary", "table_name"]


@cache
def table_name(resource_type: str) -> str:
    """``MedicationRequest`` -> ``medication_request``."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in resource_type).lstrip("_")


class Generation:
    """One complete state of the store; never written again once it counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = int(folder.name)

    def parts(self, table: str) -> list[Path]:
        return sorted(self.folder.glob(f"{table}-[0-9]*.parquet"))

    def patients(self) -> int:
        """How many persons have a Patient here (``connector.fhir.persons``)."""
        import pyarrow.parquet as pq

        tables = [
            pq.read_table(part, columns=["person"], filters=[("held", "=", True)]) for part in self.parts("person")
        ]
        merged: int = sum(table.num_rows - len(set(table["person"].to_pylist())) for table in tables)
        return self.counts().get("Patient", 0) - merged

    def holds_patient(self, subject: str) -> bool:
        """Whether a Patient resource of this keyed hash is held."""
        import pyarrow.parquet as pq

        held = [("subject", "=", subject)]
        return any(pq.read_table(part, columns=["subject"], filters=held).num_rows for part in self.parts("patient"))

    def quarantine(self) -> list[dict[str, Any]]:
        path = self.folder / "quarantine.jsonl"
        return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def counts(self) -> dict[str, int]:
        path = self.folder / "counts.json"
        return dict(orjson.loads(path.read_bytes())) if path.exists() else {}


class Store:
    """A store folder; nothing is created before it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pointer = folder / "CURRENT"
        self._generations = folder / "generations"

    def current(self) -> Generation | None:
        """The generation in force; None before the first ingest."""
        try:
            name = self._pointer.read_text().strip()
        except FileNotFoundError:
            return None
        return Generation(self._generations / name)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """An empty folder to work in; one writer at a time. Raises UnavailableError VHT-UNAVAILABLE-INGEST."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UnavailableError(
                    "another ingest is writing to this store", code="VHT-UNAVAILABLE-INGEST", hint="wait until it ends"
                ) from None
            work = self.folder / "ingesting"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(mode=0o700)
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def publish(self, fresh: Path, *, beside_old: bool = True) -> Generation:
        """Make the files in ``fresh`` the new generation, beside (or, of one name, instead of) the parts in force."""
        before = self.current()
        number = before.number + 1 if before else 1
        if before and beside_old:
            for part in before.folder.glob("*.parquet"):
                if not (fresh / part.name).exists():
                    os.link(part, fresh / part.name)
        for path in fresh.iterdir():
            sync(path)
        sync(fresh)
        self._generations.mkdir(exist_ok=True, mode=0o700)
        target = self._generations / f"{number:06d}"
        shutil.rmtree(target, ignore_errors=True)  # left by a crash between here and the pointer
        fresh.rename(target)
        sync(self._generations)
        replace_file(self._pointer, target.name.encode())
        self._forget(keep={number, number - 1})
        return Generation(target)

    def _forget(self, keep: set[int]) -> None:
        # The generation before stays: a cohort may be reading it.
        for folder in self._generations.iterdir():
            if int(folder.name) not in keep:
                shutil.rmtree(folder, ignore_errors=True)


def dataset_summary(store_dir: Path, *, smallest_cell: int = SMALLEST_CELL) -> dict[str, Any]:
    """What a catalogue may say: counts to the nearest ten, of persons and of resources; None for fewer than
    ``smallest_cell``."""
    generation = Store(store_dir).current()
    counts = generation.counts() if generation else {}
    resources = {kind: disclosable_count(counts.get(kind, 0), smallest_cell) for kind in TABLES}
    patients = disclosable_count(generation.patients() if generation else 0, smallest_cell)
    return {"patients_rounded": patients, "resources_rounded": resources}
