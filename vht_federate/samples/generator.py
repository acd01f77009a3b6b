"""Synthetic hospitals: the same arguments write the same bytes.

DIR/dataset.json                       arguments, hospitals, counts
DIR/hospital-1/Patient.ndjson …        FHIR R4, one resource a line
DIR/truth/equation.json, patients.csv  the truth: never given to a node
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from vht_federate.errors import InputError
from vht_federate.samples.charts import Chart, Resource
from vht_federate.samples.equation import truth
from vht_federate.samples.hospitals import Habits, hospital_habits, hospital_sizes
from vht_federate.samples.identities import Registrar
from vht_federate.samples.patients import NEVER, Population, draw_population

__all__ = ["RESOURCE_TYPES", "GeneratedHospital", "chart_of", "generate", "prepare_folder"]

RESOURCE_TYPES = ("Patient", "Observation", "Condition", "MedicationRequest", "Encounter")
DESCRIPTION = "dataset.json"
MAXIMUM_PATIENTS = 999_999


@dataclass(frozen=True)
class GeneratedHospital:
    """What was written for one hospital. ``resources`` by type."""

    name: str
    kind: str
    patients: int
    resources: dict[str, int]


def generate(
    folder: Path, *, hospitals: int, patients: int, seed: int, canaries: Path | None = None
) -> list[GeneratedHospital]:
    """Write ``hospitals`` of ``patients`` on average into ``folder``; plant canaries where a list of them is asked for.

    Raises InputError VHT-INPUT-SAMPLES for arguments out of range or a folder that holds something else.
    """
    if not (1 <= hospitals <= 100 and 1 <= patients <= MAXIMUM_PATIENTS and seed >= 0):
        raise InputError("1-100 hospitals, at least one patient each, a seed from 0", code="VHT-INPUT-SAMPLES")
    prepare_folder(folder)
    generated, planted = [], []
    with (_new(folder / "truth" / "patients.csv")).open("w", newline="\n") as table:
        table.write("hospital,patient,risk_10y,event_date,earlier_event\n")
        for index, size in enumerate(hospital_sizes(hospitals, patients)):
            registrar = Registrar(f"hospital-{index + 1}", f"{_prefix(index)}", seed, canaries is not None)
            rng = np.random.Generator(np.random.PCG64([seed, index]))
            generated.append(_write_hospital(folder, registrar, hospital_habits(index), size, rng, table))
            planted += registrar.planted
    (folder / "truth" / "equation.json").write_bytes(orjson.dumps(truth(), option=orjson.OPT_INDENT_2))
    arguments = {"hospitals": hospitals, "patients": patients, "seed": seed, "canaries": canaries is not None}
    describe(folder, "generated", arguments, generated)
    if canaries:
        canaries.write_text("".join(f"{text}\n" for text in planted))
    return generated


def prepare_folder(folder: Path) -> None:
    """Make ``folder``, or accept one of ours and drop its description. Raises InputError VHT-INPUT-SAMPLES."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / DESCRIPTION).exists():
        raise InputError(
            f"{folder.name} is not empty and holds no dataset of ours",
            code="VHT-INPUT-SAMPLES",
            hint="choose a new folder",
        )
    for path in sorted(folder.glob("*/*.ndjson")):
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


def describe(folder: Path, source: str, arguments: dict[str, Any], generated: list[GeneratedHospital]) -> None:
    """Write ``dataset.json``."""
    content = {
        "schema_version": "1",
        "source": source,
        "arguments": arguments,
        "hospitals": [asdict(hospital) for hospital in generated],
    }
    (folder / DESCRIPTION).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def write_resources(folder: Path, resources: Iterator[Resource]) -> dict[str, int]:
    """Append each resource to ``folder/TYPE.ndjson``; a type without resources has no file. Counts by type."""
    counts: dict[str, int] = {}
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        for resource in resources:
            kind = resource["resourceType"]
            if kind not in files:
                files[kind] = stack.enter_context(_new(folder / f"{kind}.ndjson").open("wb"))
                counts[kind] = 0
            files[kind].write(orjson.dumps(resource, option=orjson.OPT_APPEND_NEWLINE))
            counts[kind] += 1
    return counts


def chart_of(population: Population, index: int, chart: Chart) -> Iterator[Resource]:
    """Every resource of patient ``index``; nothing is measured after death."""
    male, died = bool(population.factors["male"][index]), int(population.died[index])
    yield chart.patient(born=int(population.born[index]), male=male, died=died)
    for number, day in enumerate(population.visits[index].tolist()):
        if died and day > died:
            continue
        minute = (index * 7 + number * 11) % 60
        yield chart.encounter(day, minute, unusual=number == 0)
        values = {name: float(table[index, number]) for name, table in population.measured.items()}
        yield from chart.measurements(day, minute, {k: v for k, v in values.items() if not math.isnan(v)})
    for name, days in (("diabetes", population.diabetes_since), ("hypertension", population.hypertension_since)):
        if days[index] != NEVER:
            yield chart.condition(name, int(days[index]))
    outcome = "stroke" if population.event_is_stroke[index] else "infarction"
    for days in (population.earlier_event, population.event):
        if days[index] != NEVER:
            yield chart.condition(outcome, int(days[index]))
    if population.treated_since[index] != NEVER:
        yield chart.prescription(int(population.drug[index]), int(population.treated_since[index]))


def _write_hospital(
    folder: Path, registrar: Registrar, habits: Habits, size: int, rng: np.random.Generator, table: IO[str]
) -> GeneratedHospital:
    population = draw_population(size, habits, rng)

    def resources() -> Iterator[Resource]:
        for index in range(size):
            person = registrar.identity(index + 1, male=bool(population.factors["male"][index]))
            event = int(population.event[index])
            when = np.datetime64(event - _UNIX_EPOCH, "D") if event != NEVER else ""
            earlier = int(population.earlier_event[index] != NEVER)
            table.write(f"{registrar.hospital},{person.id},{population.risk[index]:.6f},{when},{earlier}\n")
            yield from chart_of(population, index, Chart(habits, registrar, person))

    counts = write_resources(folder / registrar.hospital, resources())
    return GeneratedHospital(registrar.hospital, habits.kind, size, counts)


_UNIX_EPOCH = 719_163  # ordinal of 1970-01-01


def _prefix(index: int) -> str:
    return f"h{index + 1}-{hospital_habits(index).pack}"


def _new(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
