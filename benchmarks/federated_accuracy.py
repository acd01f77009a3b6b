"""What federation and privacy cost on generated hospitals: five seeds of the demo's study, epsilon 3, delta 1e-5.

The federated figure is computed by the functions that enclaves and the coordinator run, without Flower between them;
the peers are the same component on pooled data without privacy, and each hospital alone under the same plan. Every
AUC is exact and the mean over the hospitals' test sets, as in a demo's summary; a hospital alone is judged on its own.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.table import Row
from deploy.demo.metrics import Scored, auc, mean_over_nodes
from deploy.demo.pooled_training import Learner, cohorts_of
from deploy.demo.studies import terms_for
from strategies.plan import resolve_plan
from vht_federate.domain.plan import StudyPlan
from vht_federate.domain.study import PrivacyTargets, TrainingChoices
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.privacy.noise import SecureNoise
from vht_federate.samples.generator import generate

SEEDS = (1, 2, 3, 4, 5)


def demo_plan(uci: bool) -> StudyPlan:
    """The plan that ``vht study plan`` resolves for the demo's study."""
    terms = terms_for(uci)
    targets = PrivacyTargets(
        epsilon=terms.epsilon,
        delta=terms.delta,
        cohort_epsilon=terms.cohort_epsilon,
        evaluation_epsilon=terms.evaluation_epsilon,
    )
    return resolve_plan(targets, TrainingChoices(**terms.training))


def _one(seed: int, plan: StudyPlan) -> tuple[float, float, float]:
    """AUC, mean over the hospitals' test sets: federated, pooled without privacy, each hospital alone."""
    learner = Learner("cardio-risk", terms_for(uci=False).profile)
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        generate(data, hospitals=4, patients=1500, seed=seed)
        folders = {path.name: path for path in sorted(data.iterdir()) if (path / "Patient.ndjson").exists()}
        cohorts = list(cohorts_of(folders, learner, Path(place) / "cohorts").values())
    train, test = [cohort.of("train") for cohort in cohorts], [cohort.of("test") for cohort in cohorts]
    federated = learner.predict(learner.fit_private(train, plan, SecureNoise()), test)
    pooled = learner.predict(learner.fit_pooled(train), test)
    local = [
        learner.predict(learner.fit_private([train_cohort], plan, SecureNoise()), [test_cohort])[0]
        for train_cohort, test_cohort in zip(train, test, strict=True)
    ]
    return _auc(federated), _auc(pooled), _auc(local)


def _auc(scored: Sequence[Scored]) -> float:
    return mean_over_nodes(auc, scored) or float("nan")


def measure() -> list[Row]:
    plan = demo_plan(uci=False)
    spent = epsilon_by_population(plan.events(), plan.delta)
    figures = np.array([_one(seed, plan) for seed in SEEDS])
    federated, pooled, local = figures.mean(axis=0)
    spread, behind = figures[:, 0].std(), float((figures[:, 1] - figures[:, 0]).max())
    return [
        Row("auc_federated", federated, "AUC", "within 0.03 of pooled", federated >= pooled - 0.03, "pooled", pooled),
        Row("auc_above_local", federated, "AUC", "above local", federated > local, "each hospital alone", local),
        Row("auc_pooled_nonprivate", pooled, "AUC", "between .70 and .85", 0.70 < pooled < 0.85),
        Row("auc_federated_sd", spread, "AUC", "informational", True),
        Row("auc_behind_pooled_worst_seed", behind, "AUC", "informational", True),
        Row("epsilon", max(spent.values()), "epsilon at 1e-5", "<= 3", max(spent.values()) <= 3.0),
    ]
