"""How the UCI study's hyperparameters were chosen: three-fold cross-validation on training patients only.

Test patients are never loaded into a fold. Every row is the mean, over folds and noise, of the mean accuracy over the
four hospitals' held-out training patients at the study's own epsilon; the row that the demo uses must be within one
standard error of the best.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.federated_accuracy import demo_plan
from benchmarks.table import Row
from benchmarks.uci_accuracy import accuracies, uci_cohorts
from deploy.demo.pooled_training import Learner
from deploy.demo.studies import UCI, terms_for
from deploy.local_federation import StudyTerms
from strategies.plan import resolve_plan
from vht_federate.components.job import CohortArrays
from vht_federate.domain.plan import StudyPlan
from vht_federate.domain.study import PrivacyTargets, TrainingChoices
from vht_federate.privacy.noise import SecureNoise

FOLDS = 3
GRID: tuple[dict[str, Any], ...] = (
    UCI,
    {**UCI, "learning_rate": 0.6},
    {**UCI, "learning_rate": 2.4},
    {**UCI, "clipping_norm": 0.2},
    {**UCI, "clipping_norm": 0.8},
    {**UCI, "sampling_rate": 0.5},
    {**UCI, "sampling_rate": 0.25, "local_steps": 16},
    {**UCI, "local_steps": 6, "clipping_norm": 0.5, "learning_rate": 4.0, "momentum": 0.5},
    {**UCI, "weight_decay": 0.01},
)


def plan_of(terms: StudyTerms, training: dict[str, Any]) -> StudyPlan:
    """The plan that ``vht study plan`` resolves for ``terms`` with other hyperparameters."""
    targets = PrivacyTargets(
        epsilon=terms.epsilon,
        delta=terms.delta,
        cohort_epsilon=terms.cohort_epsilon,
        evaluation_epsilon=terms.evaluation_epsilon,
    )
    return resolve_plan(targets, TrainingChoices(**training))


def _kept(cohort: CohortArrays, keep: np.ndarray) -> CohortArrays:
    """The cohort of the patients in ``keep`` (boolean, one per patient)."""
    rows = keep[cohort.patient]
    renumbered = (np.cumsum(keep) - 1)[cohort.patient[rows]].astype(np.int64)
    return CohortArrays(cohort.values[rows], cohort.outcome[rows], renumbered, cohort.bucket[keep])


def cross_validated(learner: Learner, train: list[CohortArrays], plan: StudyPlan) -> np.ndarray:
    """[folds, 3]: what ``accuracies`` says of the patients held out."""
    folds = [np.random.default_rng(index).integers(0, FOLDS, cohort.patients) for index, cohort in enumerate(train)]
    scores = []
    for number in range(FOLDS):
        training = [_kept(cohort, fold != number) for cohort, fold in zip(train, folds, strict=True)]
        held_out = [_kept(cohort, fold == number) for cohort, fold in zip(train, folds, strict=True)]
        scores.append(accuracies(learner, learner.fit_private(training, plan, SecureNoise()), held_out))
    return np.array(scores)


def measure() -> list[Row]:
    terms = terms_for(uci=True)
    assert demo_plan(uci=True) == plan_of(terms, UCI)
    with tempfile.TemporaryDirectory() as place:
        learner, cohorts = uci_cohorts(Path(place))
    train = [cohort.of("train") for cohort in cohorts]
    scores = [cross_validated(learner, train, plan_of(terms, training))[:, 0] for training in GRID]
    return selection(GRID, scores, UCI, "accuracy")


def selection(
    grid: Sequence[dict[str, Any]], scores: Sequence[np.ndarray], demo: dict[str, Any], unit: str
) -> list[Row]:
    """One row for each choice; the demo's own must be within one standard error of the best."""
    best = max(float(score.mean()) for score in scores)
    rows = []
    for training, score in zip(grid, scores, strict=True):
        name = ", ".join(f"{key} {value:g}" for key, value in training.items())
        error = float(score.std() / np.sqrt(len(score)))
        chosen = training is demo
        goal = "chosen: within one standard error of the best" if chosen else "informational"
        holds = not chosen or float(score.mean()) >= best - max(error, 0.01)
        rows.append(Row(name, float(score.mean()), unit, goal, holds, "best of the grid", best))
    return rows
