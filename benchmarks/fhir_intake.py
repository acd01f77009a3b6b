"""Intake at size: the memory of 600 MB of NDJSON, and whether ten times the patients cost ten times the time.

The lines are streamed into files by a recipe, so that the recipe costs no memory; each intake runs in a process of its
own, whose peak resident memory the kernel tells. Seconds are of the processor: a busy machine weighs on both sizes
alike. FULL=1 adds 10^6 patients.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.table import Row

__all__ = ["measure"]

VALUES_EACH = 10
GOAL_MB, GOAL_GROWTH = 1000.0, 1.15
BYTES = 600_000_000
ROUNDS = 3

_PATIENT = '{{"resourceType":"Patient","id":"p{n}","gender":"female","birthDate":"19{year:02d}-05-17"}}\n'
_OBSERVATION = (
    '{{"resourceType":"Observation","id":"p{n}-{k}","status":"final",'
    '"category":[{{"coding":[{{"system":"http://terminology.hl7.org/CodeSystem/observation-category",'
    '"code":"vital-signs","display":"vital-signs"}}]}}],'
    '"code":{{"coding":[{{"system":"http://loinc.org","code":"8480-6","display":"Systolic Blood Pressure"}}],'
    '"text":"Systolic Blood Pressure"}},"subject":{{"reference":"Patient/p{n}"}},'
    '"effectiveDateTime":"20{k:02d}-03-01T10:00:00Z","issued":"20{k:02d}-03-01T10:00:00.000Z",'
    '"valueQuantity":{{"value":{value},"unit":"mm[Hg]","system":"http://unitsofmeasure.org","code":"mm[Hg]"}}}}\n'
)
_INTAKE = """
import json, resource, sys; from pathlib import Path; from connector.fhir import ingest
import pyarrow as pa; pa.set_cpu_count(1)
folder, store = map(Path, sys.argv[1:])
report = ingest(folder, store, node_key=b"b" * 32, dataset="bench")
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([report.accepted, report.lines, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def _write(folder: Path, patients: int) -> int:
    """A cohort of ``patients``, each with ten observations. Its bytes."""
    folder.mkdir()
    with (folder / "Patient.ndjson").open("w") as people, (folder / "Observation.ndjson").open("w") as values:
        for n in range(patients):
            people.write(_PATIENT.format(n=n, year=40 + n % 50))
            for k in range(VALUES_EACH):
                values.write(_OBSERVATION.format(n=n, k=10 + k, value=100 + (n * 7 + k * 13) % 80))
    return sum(path.stat().st_size for path in folder.iterdir())


def _intake(folder: Path, store: Path) -> tuple[float, float]:
    """(processor seconds, peak MB) of one intake in its own process."""
    completed = subprocess.run(
        [sys.executable, "-c", _INTAKE, folder, store], check=True, capture_output=True, text=True, env=os.environ
    )
    accepted, lines, seconds, peak = (float(number) for number in completed.stdout.strip("[]\n").split(","))
    assert accepted == lines > 0
    return seconds, peak


def _per_patient(root: Path, patients: int, rounds: int) -> tuple[float, float]:
    """(best processor seconds per patient, peak MB) over ``rounds``."""
    _write(root / "in", patients)
    runs = [_intake(root / "in", root / f"store-{number}") for number in range(rounds)]
    return min(seconds for seconds, _ in runs) / patients, max(peak for _, peak in runs)


def measure() -> list[Row]:
    """Both rows, and with FULL=1 the growth to a million patients."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sizes = [10_000, 100_000] + ([1_000_000] if os.environ.get("FULL") == "1" else [])
        per_patient = {}
        for size in sizes:
            (root / str(size)).mkdir()
            per_patient[size], _ = _per_patient(root / str(size), size, ROUNDS if size <= 10_000 else 1)
        sample = _write(root / "sample", 1000)
        patients = -(-BYTES * 1000 // sample)
        assert _write(root / "large", patients) >= BYTES * 0.99
        _, peak = _intake(root / "large", root / "large-store")
    rows = [Row("intake_peak_mb", peak, "MB", f"<= {GOAL_MB:g}, 600 MB of NDJSON", peak <= GOAL_MB)]
    for size in sizes[1:]:
        growth = per_patient[size] / per_patient[10_000]
        name = "intake_growth" if size == 100_000 else "intake_growth_million"
        rows.append(
            Row(name, per_patient[size] * 1e6, "us/patient", f"ratio <= {GOAL_GROWTH:g}", growth <= GOAL_GROWTH,
                "10,000 patients", per_patient[10_000] * 1e6)
        )  # fmt: skip
    return rows
