"""What only a demo can know: figures on the pooled data of all hospitals.

The demo made or imported the data, so it may look at all of them at once, outside the federation, to say what privacy
and federation cost. Nothing here feeds back into a study. Runs as its own process (it imports torch):

    python -m deploy.harness baselines ROOT     pooled without privacy; each hospital alone under the same plan
    python -m deploy.harness release ROOT       the released component, exactly, on every hospital's test patients
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from deploy.ranking import auc
from vht_federate.domain.plan import StudyPlan

__all__ = ["HarnessRequest", "auc", "measure_baselines", "measure_release"]


class HarnessRequest(BaseModel):
    """``ROOT/harness/request.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hospitals: dict[str, Path]  # name -> folder of FHIR NDJSON
    component: str
    profile: str
    plan: StudyPlan

    @classmethod
    def read(cls, root: Path) -> "HarnessRequest":
        return cls.model_validate_json((root / "harness" / "request.json").read_text())

    def write(self, root: Path) -> None:
        (root / "harness").mkdir(exist_ok=True)
        (root / "harness" / "request.json").write_text(self.model_dump_json(indent=2))


def measure_baselines(root: Path) -> dict[str, Any]:
    """``auc_pooled_nonprivate``, ``auc_local_mean``, their accuracies, and what a single column would have said.

    A figure is None where the test patients do not define it. Also written to ``baselines.json``.
    """
    from deploy.giveaways import giveaways
    from deploy.learning import Learner, cohorts_of, patient_labels
    from vht_federate.privacy.noise import SecureNoise

    request = HarnessRequest.read(root)
    learner = Learner(request.component, request.profile)
    cohorts = cohorts_of(request.hospitals, learner, root / "harness")
    trains = [cohort.of("train") for cohort in cohorts.values()]
    pooled = learner.fit_pooled(trains)
    tests = [cohort.of("test") for cohort in cohorts.values()]
    local = [
        _figures(learner.predict(learner.fit_private([train], request.plan, SecureNoise()), tests), tests)
        for train in trains
    ]
    figures = {
        **{f"{key}_pooled_nonprivate": value for key, value in _figures(learner.predict(pooled, tests), tests).items()},
        **{f"{key}_local_mean": _mean([one[key] for one in local]) for key in ("auc", "accuracy")},
        "accuracy_majority": _mean([_majority(cohort) for cohort in cohorts.values()]),
        "patients": sum(cohort.patients for cohort in cohorts.values()),
        "patients_with_outcome": sum(int(patient_labels(cohort).sum()) for cohort in cohorts.values()),
        "test_patients": sum(test.patients for test in tests),
        "test_patients_with_outcome": sum(int(patient_labels(test).sum()) for test in tests),
        **giveaways(trains, tests, learner.component.inputs(learner.profile)),
    }
    (root / "harness" / "baselines.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def measure_release(root: Path, weights: Path) -> dict[str, Any]:
    """Exact ``auc_federated`` and ``accuracy_federated`` of released ``weights``, beside the baselines."""
    from safetensors.numpy import load_file

    from deploy.learning import Learner, cohorts_of

    request = HarnessRequest.read(root)
    learner = Learner(request.component, request.profile)
    tests = [cohort.of("test") for cohort in cohorts_of(request.hospitals, learner, root / "harness").values()]
    exact = _figures(learner.predict(load_file(weights), tests), tests)
    figures = json.loads((root / "harness" / "baselines.json").read_text())
    return {**{f"{key}_federated": value for key, value in exact.items()}, **figures}


def _figures(scored: Sequence[tuple[NDArray[Any], NDArray[Any]]], tests: Sequence[Any]) -> dict[str, float | None]:
    """``auc`` over the test patients of all hospitals; ``accuracy`` as the mean over the hospitals' test sets."""
    assert len(scored) == len(tests)
    scores = np.concatenate([score for score, _ in scored])
    labels = np.concatenate([label for _, label in scored])
    accuracy = [float(np.mean((score > 0.5) == (label > 0.5))) if len(score) else None for score, label in scored]
    return {"auc": _mean([auc(scores, labels)]), "accuracy": _mean(accuracy)}


def _mean(figures: Sequence[float | None]) -> float | None:
    """Over the figures that are defined; None without one."""
    defined = [figure for figure in figures if figure is not None and np.isfinite(figure)]
    return float(np.mean(defined)) if defined else None


def _majority(cohort: Any) -> float | None:
    """Accuracy on a hospital's test patients of always saying what most of its training patients have."""
    from deploy.learning import patient_labels

    train, test = patient_labels(cohort.of("train")), patient_labels(cohort.of("test"))
    if not len(train) or not len(test):
        return None
    return float(np.mean((test > 0.5) == (np.mean(train) > 0.5)))


if __name__ == "__main__":
    what, root = sys.argv[1], Path(sys.argv[2])
    if what == "baselines":
        print(json.dumps(measure_baselines(root)))
    elif what == "release":
        print(json.dumps(measure_release(root, Path(sys.argv[3]))))
    else:
        sys.exit(f"unknown: {what}")
