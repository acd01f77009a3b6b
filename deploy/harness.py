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


def auc(score: NDArray[Any], label: NDArray[Any]) -> float:
    """Area under the ROC curve: the chance that a case scores above a control, ties half (Mann-Whitney)."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    _, first, counts = np.unique(ranked, return_index=True, return_counts=True)
    ranks = np.empty(len(score))
    ranks[order] = np.repeat(first + (counts + 1) / 2, counts)
    cases = label > 0.5
    positives, negatives = int(cases.sum()), int((~cases).sum())
    if not positives or not negatives:
        return float("nan")
    return float((ranks[cases].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def measure_baselines(root: Path) -> dict[str, float]:
    """``auc_pooled_nonprivate``, ``auc_local_mean`` and their accuracies; also written to ``baselines.json``."""
    from deploy.learning import Learner, cohorts_of
    from vht_federate.privacy.noise import SecureNoise

    request = HarnessRequest.read(root)
    learner = Learner(request.component, request.profile)
    cohorts = cohorts_of(request.hospitals, learner, root / "harness")
    pooled = learner.fit_pooled([cohort.of("train") for cohort in cohorts.values()])
    tests = [cohort.of("test") for cohort in cohorts.values()]
    local = [
        _figures(learner.predict(learner.fit_private([cohort.of("train")], request.plan, SecureNoise()), tests), tests)
        for cohort in cohorts.values()
    ]
    figures = {
        **{f"{key}_pooled_nonprivate": value for key, value in _figures(learner.predict(pooled, tests), tests).items()},
        **{f"{key}_local_mean": float(np.mean([one[key] for one in local])) for key in ("auc", "accuracy")},
        "accuracy_majority": float(np.mean([_majority(cohort) for cohort in cohorts.values()])),
        "patients": float(sum(cohort.patients for cohort in cohorts.values())),
    }
    (root / "harness" / "baselines.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def measure_release(root: Path, weights: Path) -> dict[str, float]:
    """Exact ``auc_federated`` and ``accuracy_federated`` of released ``weights``, beside the baselines."""
    from safetensors.numpy import load_file

    from deploy.learning import Learner, cohorts_of

    request = HarnessRequest.read(root)
    learner = Learner(request.component, request.profile)
    tests = [cohort.of("test") for cohort in cohorts_of(request.hospitals, learner, root / "harness").values()]
    exact = _figures(learner.predict(load_file(weights), tests), tests)
    figures = json.loads((root / "harness" / "baselines.json").read_text())
    return {**{f"{key}_federated": value for key, value in exact.items()}, **figures}


def _figures(scored: Sequence[tuple[NDArray[Any], NDArray[Any]]], tests: Sequence[Any]) -> dict[str, float]:
    """``auc`` over the test patients of all hospitals; ``accuracy`` as the mean over the hospitals' test sets."""
    assert len(scored) == len(tests)
    scores = np.concatenate([score for score, _ in scored])
    labels = np.concatenate([label for _, label in scored])
    accuracy = [float(np.mean((score > 0.5) == (label > 0.5))) for score, label in scored]
    return {"auc": auc(scores, labels), "accuracy": float(np.mean(accuracy))}


def _majority(cohort: Any) -> float:
    """Accuracy on a hospital's test patients of always saying what most of its training patients have."""
    from deploy.learning import patient_labels

    train, test = patient_labels(cohort.of("train")), patient_labels(cohort.of("test"))
    return float(np.mean((test > 0.5) == (np.mean(train) > 0.5)))


if __name__ == "__main__":
    what, root = sys.argv[1], Path(sys.argv[2])
    if what == "baselines":
        print(json.dumps(measure_baselines(root)))
    elif what == "release":
        print(json.dumps(measure_release(root, Path(sys.argv[3]))))
    else:
        sys.exit(f"unknown: {what}")
