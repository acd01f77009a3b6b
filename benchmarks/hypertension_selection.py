"""How the hyperparameters of ``vht demo --fhir`` were chosen: three-fold cross-validation on training patients only.

Needs the sample export, at ../shared/data/gsd_r4_ndjson.tgz or named by VHT_FHIR, split into four hospitals as the demo
splits it. Test patients are never loaded into a fold. Few training patients have the outcome, so every row is the mean
over folds and ``DRAWS`` draws of the noise of the AUC on all hospitals' patients together. Most of it is age: see the
component's card.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table import Row
from benchmarks.uci_selection import cross_validated, plan_of, selection
from deploy.demo.pooled_training import Learner, cohorts_of
from deploy.demo.studies import EXPORT, export_terms
from vht_federate.components.job import CohortArrays
from vht_federate.samples.split import split_export

HOSPITALS = 4
DRAWS = 10
GRID: tuple[dict[str, Any], ...] = (
    EXPORT,
    {**EXPORT, "learning_rate": 0.6},
    {**EXPORT, "learning_rate": 2.4},
    {**EXPORT, "clipping_norm": 0.2},
    {**EXPORT, "sampling_rate": 0.5},
    {**EXPORT, "local_steps": 16},
)


def _training_patients(learner: Learner, place: Path) -> list[CohortArrays]:
    """Exits with a reason where the export is not there: it is no part of this project."""
    export = Path(os.environ.get("VHT_FHIR", Path(__file__).parents[2] / "shared" / "data" / "gsd_r4_ndjson.tgz"))
    if not export.exists():
        sys.exit(f"the export {export.name} is not here: set VHT_FHIR to a folder of NDJSON or a .tgz")
    split_export(export, place / "data", hospitals=HOSPITALS)
    folders = {path.name: path for path in sorted((place / "data").iterdir()) if (path / "Patient.ndjson").exists()}
    return [cohort.of("train") for cohort in cohorts_of(folders, learner, place / "cohorts").values()]


def measure() -> list[Row]:
    terms = export_terms(HOSPITALS)
    learner = Learner(terms.component, terms.profile)
    with tempfile.TemporaryDirectory() as place:
        train = _training_patients(learner, Path(place))
    plans = [plan_of(terms, training) for training in GRID]
    scores = [np.concatenate([cross_validated(learner, train, plan)[:, 2] for _ in range(DRAWS)]) for plan in plans]
    return selection(GRID, [score[np.isfinite(score)] for score in scores], EXPORT, "AUC")
