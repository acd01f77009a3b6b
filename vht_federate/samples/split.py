"""One FHIR export as several hospitals: a patient's hospital is a public function of Patient.id, and all follows it.

    DIR/hospital-1/{Patient,Observation,Condition,MedicationRequest,Encounter}.ndjson …
    DIR/dataset.json    the rule, and where every line of the export went

A Medication is of no patient, and any hospital's prescriptions may refer to it: each hospital gets it.

The rule's prefix is not the one of the train/test split (``domain/split.py``), so that the two are independent: every
hospital has its share of test patients.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson

from vht_federate.domain.references import patient_id_of
from vht_federate.errors import InputError
from vht_federate.samples.export import Export
from vht_federate.samples.generator import RESOURCE_TYPES, GeneratedHospital, describe, prepare_folder

__all__ = ["RULE", "Split", "hospital_of", "split_export"]

RULE = "vht-hospital-1|"
MAXIMUM_HOSPITALS = 100
# Elements of R4 resources that lead to the patient (compartment definition of Patient), the commonest first.
PATIENT_ELEMENTS = ("subject", "patient", "beneficiary", "individual", "for")
SHARED_TYPES = ("Medication",)
PLACES_NAMED = 20


def hospital_of(patient_id: str, hospitals: int) -> int:
    """1..``hospitals``, from sha256 of a public prefix and the FHIR Patient.id."""
    return int.from_bytes(hashlib.sha256(RULE.encode() + patient_id.encode()).digest()[:8], "big") % hospitals + 1


@dataclass(frozen=True)
class Split:
    """Where every line went: ``lines`` = those of one hospital + ``shared`` + ``unread`` + ``stray`` + ``malformed``.

    ``shared``: those that each hospital has. ``unread``: resources of types that no node reads. ``stray``: resources of
    no patient of this export. All by type. ``malformed_at``: file and line of the first lines that are no resource.
    ``ignored``: files that were not read.
    """

    hospitals: list[GeneratedHospital]
    lines: int
    shared: dict[str, int]
    unread: dict[str, int]
    stray: dict[str, int]
    malformed: int
    malformed_at: list[str]
    ignored: list[str]


def split_export(export: Path, out: Path, *, hospitals: int) -> Split:
    """Write each hospital's share of ``export`` under ``out``, every line as it was.

    Raises InputError VHT-INPUT-EXPORT for an export that holds no patient or cannot be read to its end,
    VHT-INPUT-SAMPLES for a number of hospitals out of range or a folder that holds something else, or the export.
    """
    if not 1 <= hospitals <= MAXIMUM_HOSPITALS:
        raise InputError(f"1-{MAXIMUM_HOSPITALS} hospitals", code="VHT-INPUT-SAMPLES")
    if export.resolve().is_relative_to(out.resolve()):
        raise InputError(
            "the export lies in the folder to write", code="VHT-INPUT-SAMPLES", hint="choose another --out"
        )
    source = Export(export.resolve())
    homes = {patient: hospital_of(patient, hospitals) for patient in _patients(source)}
    if not homes:
        raise InputError(f"{export.name} holds no Patient", code="VHT-INPUT-EXPORT")
    prepare_folder(out)
    with ExitStack() as files:
        writer = _Hospitals(out, hospitals, homes, files)
        for line in source.lines(ignored=writer.ignored):
            writer.take(f"{line.file}:{line.number}", line.content)
    split = writer.result()
    arguments = {"hospitals": hospitals, "rule": f"sha256('{RULE}' + Patient.id)[:8] mod hospitals + 1"}
    accounted = {key: value for key, value in asdict(split).items() if key != "hospitals"}
    describe(out, "export", arguments | accounted, split.hospitals)
    return split


def _patients(source: Export) -> Iterator[str]:
    for line in source.lines():
        # an escape may spell the type in another way
        if line.content is not None and (b'"Patient"' in line.content or b"\\u" in line.content):
            resource = _resource(line.content)
            if resource.get("resourceType") == "Patient" and type(resource.get("id")) is str:
                yield resource["id"]


def _resource(content: bytes | None) -> dict[str, Any]:
    """The JSON object of a line; an empty one for anything else."""
    try:
        value = orjson.loads(content or b"")
    except orjson.JSONDecodeError:
        return {}
    return value if type(value) is dict else {}


def _patient_of(resource: dict[str, Any]) -> str | None:
    """Patient.id of the patient whose resource this is; None where no element says so."""
    if resource["resourceType"] == "Patient":
        own = resource.get("id")
        return own if type(own) is str else None
    for name in PATIENT_ELEMENTS:
        element = resource.get(name)
        reference = element.get("reference") if type(element) is dict else None
        patient_id = patient_id_of(reference) if type(reference) is str else None
        if patient_id:
            return patient_id
    return None


@dataclass
class _Hospitals:
    """Takes lines one after the other."""

    out: Path
    hospitals: int
    homes: dict[str, int]
    files: ExitStack
    written: dict[tuple[int, str], IO[bytes]] = field(default_factory=dict)
    counts: Counter[tuple[int, str]] = field(default_factory=Counter)
    shared: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    stray: Counter[str] = field(default_factory=Counter)
    malformed: list[str] = field(default_factory=list)
    malformed_count: int = 0
    ignored: list[str] = field(default_factory=list)
    lines: int = 0

    def take(self, place: str, content: bytes | None) -> None:
        self.lines += 1
        resource = _resource(content)
        kind = resource.get("resourceType")
        if content is None or type(kind) is not str or not (kind.isascii() and kind.isalpha()):
            self.malformed_count += 1
            self.malformed += [place] if self.malformed_count <= PLACES_NAMED else []
        elif kind in SHARED_TYPES:
            self.shared[kind] += 1
            for number in range(1, self.hospitals + 1):
                self._write(number, kind, content)
        elif kind not in RESOURCE_TYPES:
            self.unread[kind] += 1
        elif (home := self.homes.get(_patient_of(resource) or "")) is None:
            self.stray[kind] += 1
        else:
            self._write(home, kind, content)

    def _write(self, home: int, kind: str, content: bytes) -> None:
        self._file(home, kind).write(content + b"\n")
        self.counts[home, kind] += 1

    def _file(self, home: int, kind: str) -> IO[bytes]:
        if (home, kind) not in self.written:
            folder = self.out / f"hospital-{home}"
            folder.mkdir(parents=True, exist_ok=True)
            self.written[home, kind] = self.files.enter_context((folder / f"{kind}.ndjson").open("wb"))
        return self.written[home, kind]

    def result(self) -> Split:
        patients = Counter(self.homes.values())
        hospitals = [
            GeneratedHospital(
                f"hospital-{home}",
                "export",
                patients[home],
                {kind: self.counts[home, kind] for kind in (*RESOURCE_TYPES, *SHARED_TYPES) if self.counts[home, kind]},
            )
            for home in range(1, self.hospitals + 1)
        ]
        return Split(
            hospitals,
            self.lines,
            dict(sorted(self.shared.items())),
            dict(sorted(self.unread.items())),
            dict(sorted(self.stray.items())),
            self.malformed_count,
            self.malformed,
            self.ignored,
        )
