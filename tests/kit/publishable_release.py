"""A rehearsed study whose cohort is a real one in form: real rows, FHIR, codebook, seal. No fit: rows are random."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from synth.decode import decode
from synth.fhir import write_ndjson
from vht_federate.central.admission import Admission
from vht_federate.central.archive import Limits, pack
from vht_federate.central.store import Catalogue
from vht_federate.components.contract import read_component
from vht_federate.packaging.codebook import Codebook, codebook_for
from vht_federate.packaging.cohort import seal_cohort
from vht_federate.packaging.statement import cohort_share
from vht_federate.signing.signed_manifest import write_json
from vht_federate.testing.clock import FixedClock
from vht_federate.testing.rehearsal import COMPONENT, PROFILE, Rehearsal

ROWS = 60
CONTRACT = read_component(COMPONENT)
BOOK = Codebook.read(codebook_for(CONTRACT, PROFILE))
SCORE = {"columns": ["age"], "metric": "TVComplement", "score": 0.9, "expected": 0.92, "holds": True}


def write_cohort(folder: Path, statement: dict[str, Any], tables: bytes = b"tables") -> None:
    """The files of a cohort, not yet sealed."""
    rng = np.random.default_rng(1)
    codes = np.stack([rng.integers(0, BOOK.cells(name), ROWS) for name in BOOK.order], axis=1)
    table = decode(BOOK, codes, rng)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "data.csv", index=False, lineterminator="\n")
    table.to_parquet(folder / "data.parquet", index=False)
    write_ndjson(folder / "fhir", CONTRACT, PROFILE, table)
    write_json(folder / "codebook.json", codebook_for(CONTRACT, PROFILE))
    write_json(folder / "sdv_metadata.json", {"tables": {}})
    write_json(folder / "privacy_statement.json", statement)
    report = {"reference": "tables", "columns": [SCORE], "pairs": [SCORE], "worst_column": SCORE, "worst_pair": SCORE}
    report |= {"column_mean": 0.9, "pair_mean": 0.9, "noise_dominated": [], "diagnostic": {"Data Validity": 1.0}}
    write_json(folder / "sdmetrics_report.json", report)
    (folder / "marginals.safetensors").write_bytes(tables)
    (folder / "data_card.md").write_text("# Synthetic cohort\n\nNo row is a patient. <script>alert(1)</script>\n")


@dataclass
class Publishable(Rehearsal):
    """``spoil`` may change the cohort's folder, or the package's, before it is sealed by the coordinator."""

    spoil: Callable[[Path], None] | None = None
    cohort_facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.request = self.request.model_copy(update={"codebook": codebook_for(CONTRACT, PROFILE)})

    def _release_cohort(self, statement: dict[str, Any]) -> str:
        self.cohort = self.root / "cohort"
        share = cohort_share(self.plan)
        write_cohort(self.cohort, {**statement, "release": share.model_dump(mode="json")}, self.outputs.tables())
        if self.spoil:
            self.spoil(self.cohort)
        facts = {
            "study_id": self.request.study_id,
            "permit_id": self.permit.permit_id,
            "component": self.request.component.model_dump(mode="json"),
            "license": "CC-BY-4.0",
            "rows": ROWS,
            "tables_sha256": self.outputs.table_digests(),
            "columns": list(BOOK.order),
            "nodes": next(len(entry["outputs"]) for entry in self.run["rounds"] if entry["job"] == "marginals"),
            "epsilon": statement["epsilon"],
            "cohort_epsilon": share.epsilon,
            "delta": statement["delta"],
            "quality": {"column_mean": 0.9, "pair_mean": 0.9, "worst_column": SCORE, "worst_pair": SCORE},
        }
        return seal_cohort(self.cohort, {**facts, **self.cohort_facts}, self.coordinator).sha256


class Platform:
    """A catalogue with its admission and a way to send folders to it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.trust = state / "trust.json"
        state.mkdir(parents=True, exist_ok=True)
        self.catalogue = Catalogue(state)
        self.admission = Admission(self.catalogue, self.trust, FixedClock(), Limits(files=500, total_bytes=1 << 26))

    def send(self, bundle: Path) -> Any:
        archive = io.BytesIO()
        pack(bundle, archive)
        archive.seek(0)
        return self.admission.admit(archive)
