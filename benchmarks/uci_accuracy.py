"""The four real UCI hospitals at epsilon 3, delta 1e-4: the demo's study, two hundred draws of the noise.

Needs the folder of the four UCI files, at ../shared/data/uci-heart or named by VHT_UCI. All 920 patients, a fixed
public split; every hyperparameter was chosen on training patients only (``benchmarks/uci_selection.py``).
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.federated_accuracy import demo_plan
from benchmarks.table import Row
from deploy.demo.metrics import accuracy, auc, mean_over_nodes
from deploy.demo.pooled_training import Learner, cohorts_of
from deploy.demo.studies import terms_for
from vht_federate.components.job import CohortArrays
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.privacy.noise import SecureNoise
from vht_federate.samples.uci import import_folder

DRAWS = 200
FLOOR = 0.78


def uci_folder() -> Path:
    """Exits with a reason where the data are not there: they are real patients and not part of this project."""
    folder = Path(os.environ.get("VHT_UCI", Path(__file__).parents[2] / "shared" / "data" / "uci-heart"))
    if not (folder / "processed.cleveland.data").exists():
        sys.exit(f"the UCI files are not at {folder.name}: set VHT_UCI to their folder")
    return folder


def uci_cohorts(place: Path) -> tuple[Learner, list[CohortArrays]]:
    learner = Learner("cardio-risk", terms_for(uci=True).profile)
    import_folder(uci_folder(), place / "data")
    folders = {path.name: path for path in sorted((place / "data").iterdir()) if (path / "Patient.ndjson").exists()}
    return learner, list(cohorts_of(folders, learner, place / "cohorts").values())


def accuracies(
    learner: Learner, weights: dict[str, np.ndarray], cohorts: list[CohortArrays]
) -> tuple[float, float, float]:
    """Mean over the cohorts of accuracy at 0.5, mean over the cohorts of AUC, and AUC over all their patients."""
    scored = learner.predict(weights, cohorts)
    right, area = (mean_over_nodes(figure, scored) for figure in (accuracy, auc))
    scores, labels = (np.concatenate(part) for part in zip(*scored, strict=True))
    undefined = float("nan")
    return undefined if right is None else right, undefined if area is None else area, auc(scores, labels)


def measure() -> list[Row]:
    plan = demo_plan(uci=True)
    spent = max(epsilon_by_population(plan.events(), plan.delta).values())
    with tempfile.TemporaryDirectory() as place:
        learner, cohorts = uci_cohorts(Path(place))
    train, test = [cohort.of("train") for cohort in cohorts], [cohort.of("test") for cohort in cohorts]
    runs = [accuracies(learner, learner.fit_private(train, plan, SecureNoise()), test) for _ in range(DRAWS)]
    right, area, _ = np.mean(runs, axis=0)
    by_run = np.array([run[0] for run in runs])
    below = float(np.mean(by_run < FLOOR))
    pooled = accuracies(learner, learner.fit_pooled(train), test)[0]
    majority = [
        float(np.mean((b.labels() > 0.5) == (a.labels().mean() > 0.5))) for a, b in zip(train, test, strict=True)
    ]
    return [
        Row("accuracy_mean", right, "accuracy", ">= 0.78", right >= FLOOR, "majority", float(np.mean(majority))),
        Row("accuracy_worst_draw", by_run.min(), "accuracy", "informational", True, "pooled, non-private", pooled),
        Row("accuracy_sd", by_run.std(), "accuracy", "informational", True),
        Row("draws_below_0.78", below, "share of draws", "<= 0.03", below <= 0.03),
        Row("auc_mean", area, "AUC", "informational", True),
        Row("epsilon", spent, "epsilon at 1e-4", "<= 3", spent <= 3.0),
    ]
