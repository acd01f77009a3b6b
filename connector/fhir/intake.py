"""Intake: a folder of FHIR R4 (NDJSON, Bundles) becomes the next generation of the store, every line accounted for."""

from collections.abc import Iterable
from dataclasses import replace as changed
from importlib.resources import files
from pathlib import Path

from connector.fhir.dangling_references import WITH_ENCOUNTER
from connector.fhir.deletions import UNREADABLE, Deleted, Deletions, read_deletion, read_deletions
from connector.fhir.disk_full import on_this_disk
from connector.fhir.ingest_report import IngestReport
from connector.fhir.line_reading import read_line
from connector.fhir.merge import settle
from connector.fhir.ndjson import Line
from connector.fhir.observation_values import Units
from connector.fhir.persons import LINKS
from connector.fhir.resources import MEDICATION, read_version
from connector.fhir.source_folder import Folder, look_into, read_file
from connector.fhir.staging import Staging
from connector.fhir.store import Store, table_name
from connector.fhir.subject_keys import content_key, resource_key, subject_key
from connector.fhir.typed_elements import Quarantine
from connector.fhir.validation import SAMPLE_SIZE, Sample
from vht_federate.components.contract import Port, read_component
from vht_federate.domain.split import bucket_of
from vht_federate.errors import InputError

__all__ = ["ingest", "installed_ports"]

KEY_BYTES = 32
SUBJECTS_HELD = 100_000


def installed_ports() -> tuple[Port, ...]:
    """The ports of every component that ships: they say which codes come in which units."""
    root = Path(str(files("vht_federate.components")))
    folders = sorted(path.parent for path in root.glob("*/component.toml"))
    return tuple(port for folder in folders for port in read_component(folder).ports)


def ingest(
    folder: Path,
    store_dir: Path,
    *,
    node_key: bytes,
    dataset: str,
    ports: Iterable[Port] | None = None,
    replace: bool = False,
    deletions: Deletions | None = None,
    sample_size: int = SAMPLE_SIZE,
) -> IngestReport:
    """Read NDJSON (``.ndjson``, ``.jsonl``) and Bundles (``.json``), plain, ``.gz`` or ``.zst``, in ``folder`` into
    ``store_dir``, beside what is there or in its place; the report names every other entry as ignored.

    What ``deletions`` list leaves the store. ``sample_size`` lines of each type by place and as many by chance are
    validated against FHIR's models when the store is complete: that is reported, and changes nothing. Reading the same
    data again changes nothing; with ``replace``, nothing but this folder counts afterwards. A crash leaves the store as
    it was before.

    Raises InputError VHT-INPUT-FHIR-FOLDER where there is nothing to read, UnavailableError VHT-UNAVAILABLE-INGEST
    while another ingest runs, VHT-UNAVAILABLE-DISK where there is no room.
    """
    if len(node_key) != KEY_BYTES:
        raise InputError("the node's key has 32 bytes", code="VHT-INPUT-KEY")
    contents = _sources(folder, required=deletions is None)
    units = Units(tuple(installed_ports() if ports is None else ports))
    store = Store(store_dir.resolve())
    with on_this_disk(), store.writing() as work:
        staging, sample = Staging(work), Sample(sample_size)
        try:
            for number, path in enumerate(contents.files):
                _Reader(staging, node_key, units, number, sample).read(path)
            deletion_files = _bury_listed(staging, node_key, deletions, first=len(contents.files))
        finally:
            staging.close()
        names = [path.name for path in [*contents.files, *deletion_files]]
        report = settle(staging, store, work, dataset, names, replace=replace)
    return changed(report, sample=sample.validated(), ignored=contents.ignored)


def _sources(folder: Path, *, required: bool) -> Folder:
    if not folder.is_dir():
        raise InputError(f"{folder.name} is not a folder", code="VHT-INPUT-FHIR-FOLDER")
    contents = look_into(folder)
    if required and not contents.files:
        raise InputError(
            f"{folder.name} holds no NDJSON",
            code="VHT-INPUT-FHIR-FOLDER",
            hint="expected are files such as Patient.ndjson or Observation.ndjson.gz, one resource a line",
        )
    return contents


def _bury_listed(staging: Staging, node_key: bytes, deletions: Deletions | None, *, first: int) -> tuple[Path, ...]:
    """Stage what a source deleted. The files read, numbered from ``first``."""
    if deletions is None:
        return ()
    for number, path in enumerate(deletions.files, first):
        for line in read_deletions(path, deletions.at):
            if line.unreadable:
                staging.add("fault", (number, line.number, "line", UNREADABLE, ""))
            for deletion in line.gone:
                _bury(staging, node_key, deletion)
    return deletions.files


def _bury(staging: Staging, node_key: bytes, deletion: Deleted) -> None:
    key = resource_key(node_key, deletion.type, deletion.id)
    subject = subject_key(node_key, deletion.id) if deletion.type == "Patient" else None
    staging.add("deletion", (deletion.type, key, subject, deletion.at, deletion.version))


class _Reader:
    """Reads one file into the staging tables."""

    def __init__(self, staging: Staging, node_key: bytes, units: Units, number: int, sample: Sample) -> None:
        self._staging, self._key, self._units, self._number, self._sample = staging, node_key, units, number, sample
        self._subjects: dict[str, str] = {}

    def read(self, path: Path) -> None:
        empty = True
        for line in read_file(path):
            empty = False
            if line.fault:
                understood = line.deletion is None or self._bury(line.deletion)
                self._fault(line.number, "line", line.fault if understood else UNREADABLE, "")
                continue
            try:
                self._accept(line)
            except Quarantine as verdict:
                self._fault(line.number, "line", verdict.reason, verdict.path)
        if empty:
            self._fault(0, "file", "empty-file", "")

    def _bury(self, entry: bytes) -> bool:
        """Stage what a history says was deleted. False where that is not understood."""
        try:
            deletion = read_deletion(entry)
        except ValueError:
            return False
        if deletion is not None:
            _bury(self._staging, self._key, deletion)
        return True

    def _accept(self, line: Line) -> None:
        read = read_line(line.content, self._units)
        reading, content = read.reading, content_key(self._key, read.digestible)
        self._sample.offer(reading.type, content, line.content)
        key = resource_key(self._key, reading.type, reading.id)
        subject = self._subject(reading.patient_id) if reading.patient_id is not None else None
        place = (self._number, line.number)
        verdict, rejected = reading.verdict, reading.verdict.rejected
        counts = (verdict.accepted, len(rejected))
        version = read_version(read.resource)
        self._staging.add("line", (*place, reading.type, key, content, *counts, *version, reading.mistaken, subject))
        lead: tuple[int | str | None, ...] = (*place, key, subject) if subject else (*place, key)
        if reading.type in WITH_ENCOUNTER:
            lead += (self._reference("Encounter", reading.encounter_id),)
        if reading.type == "MedicationRequest":
            lead += (self._reference(MEDICATION, reading.medication_id),)
        for row in reading.rows:
            self._staging.add(table_name(reading.type), lead + row)
        for link in reading.links:
            survivor, replaced = ((self._subject(patient_id), bucket_of(patient_id)) for patient_id in link)
            self._staging.add(LINKS, (*place, key, *survivor, *replaced))
        for reason, path in rejected:
            self._fault(line.number, "value", reason, path)

    def _reference(self, kind: str, resource_id: str | None) -> str | None:
        return resource_key(self._key, kind, resource_id) if resource_id else None

    def _fault(self, line: int, kind: str, reason: str, path: str) -> None:
        self._staging.add("fault", (self._number, line, kind, reason, path))

    def _subject(self, patient_id: str) -> str:
        subject = self._subjects.get(patient_id)
        if subject is None:
            if len(self._subjects) >= SUBJECTS_HELD:
                self._subjects.clear()
            subject = self._subjects[patient_id] = subject_key(self._key, patient_id)
        return subject
