"""What only a demo can know: figures from the source files of all hospitals, to judge what came out.

The demo made or imported the data, so it may look at all of them at once, outside the federation, to say what privacy
and federation cost. These figures are exact: they are not private, are never published, and nothing here feeds back
into a study, a package or a cohort. Every AUC and accuracy is the mean over the hospitals' test sets, each hospital
with the same weight. Runs as its own process (it imports torch):

    python -m deploy.demo.baselines baselines ROOT   pooled without privacy; each hospital alone under the same plan
    python -m deploy.demo.baselines release ROOT     what ROOT/run released: component by round, and cohort
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from deploy.demo.metrics import Scored, accuracy, auc, mean_of, mean_over_nodes
from vht_federate.domain.plan import StudyPlan

if TYPE_CHECKING:
    from deploy.demo.pooled_training import Learner
    from vht_federate.components.job import CohortArrays

__all__ = ["HarnessRequest", "measure_baselines", "measure_release"]

ABOUT = (
    "Computed straight from the source files of all hospitals, outside the federation, to judge the result. Not "
    "private, never published, in no package and no cohort. AUC and accuracy are means over the nodes' test sets."
)
UNKNOWN = ("tstr_auc", "tvd_mean", "tvd_worst", "tvd_worst_variable", "marginals")  # where no cohort was released


class HarnessRequest(BaseModel):
    """``ROOT/harness/request.json``: ``hospitals`` are those that the figures are about."""

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
    """What the release is compared with; ``by_node`` holds the same for each hospital. Also in ``baselines.json``.

    A figure is None where the test patients do not define it.
    """
    from deploy.demo.fidelity import auc_when_trained_on
    from deploy.demo.trivial_baselines import trivial_baselines
    from vht_federate.privacy.noise import SecureNoise

    learner, cohorts, plan = _opened(root)
    trains, tests = ([cohort.of(part) for cohort in cohorts.values()] for part in ("train", "test"))
    pooled = learner.predict(learner.fit_pooled(trains), tests)
    local = [
        learner.predict(learner.fit_private([train], plan, SecureNoise()), [test])[0]
        for train, test in zip(trains, tests, strict=True)
    ]
    majority = [_majority(cohort) for cohort in cohorts.values()]
    labels = [cohort.labels() for cohort in cohorts.values()]
    figures = {
        "auc_pooled_nonprivate": mean_over_nodes(auc, pooled),
        "accuracy_pooled_nonprivate": mean_over_nodes(accuracy, pooled),
        "auc_local_mean": mean_over_nodes(auc, local),
        "accuracy_local_mean": mean_over_nodes(accuracy, local),
        "accuracy_majority": mean_of(majority),
        "real_auc": auc_when_trained_on(learner, trains, tests),
        "patients": sum(len(label) for label in labels),
        "patients_with_outcome": int(sum(label.sum() for label in labels)),
        "test_patients": sum(len(label) for _, label in pooled),
        "test_patients_with_outcome": int(sum(label.sum() for _, label in pooled)),
        **trivial_baselines(trains, tests, learner.component.inputs(learner.profile)),
        "by_node": _by_node(list(cohorts), {"pooled_nonprivate": pooled, "local": local}, majority),
    }
    (root / "harness" / "baselines.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def measure_release(root: Path) -> dict[str, Any]:
    """The component and the cohort that ``root/run`` released, beside the baselines of ``measure_baselines``."""
    from safetensors.numpy import load_file

    learner, cohorts, _ = _opened(root)
    run, tests = root / "run", [cohort.of("test") for cohort in cohorts.values()]
    weights = run / "bundle" / "release" / learner.component.name / "weights.safetensors"
    scored = learner.predict(load_file(weights), tests)
    figures = json.loads((root / "harness" / "baselines.json").read_text())
    for name, node_scored in zip(cohorts, scored, strict=True):
        figures["by_node"][name] |= _judged("federated", node_scored)
    return {
        "private": False,
        "about": ABOUT,
        "auc_federated": mean_over_nodes(auc, scored),
        "accuracy_federated": mean_over_nodes(accuracy, scored),
        **figures,
        "learning_curve": _learning_curve(learner, run / "weights", tests),
        **_fidelity(learner, run / "cohort", list(cohorts.values()), tests),
    }


def _opened(root: Path) -> "tuple[Learner, dict[str, CohortArrays], StudyPlan]":
    from deploy.demo.pooled_training import Learner, cohorts_of

    request = HarnessRequest.read(root)
    learner = Learner(request.component, request.profile)
    return learner, cohorts_of(request.hospitals, learner, root / "harness"), request.plan


def _learning_curve(learner: "Learner", checkpoints: Path, tests: "Sequence[CohortArrays]") -> dict[str, list[Any]]:
    """Of the weights after each round, by column."""
    from safetensors.numpy import load_file

    paths = [path for path in sorted(checkpoints.glob("round-*.safetensors")) if path.stem != "round-000"]
    judged = [learner.predict(load_file(path), tests) for path in paths]
    return {
        "round": [int(path.stem.removeprefix("round-")) for path in paths],
        "auc": [mean_over_nodes(auc, scored) for scored in judged],
        "accuracy": [mean_over_nodes(accuracy, scored) for scored in judged],
    }


def _fidelity(
    learner: "Learner", folder: Path, cohorts: "Sequence[CohortArrays]", tests: "Sequence[CohortArrays]"
) -> dict[str, Any]:
    """The cohort in ``folder`` against the training patients; all None where none was released."""
    from deploy.demo.fidelity import auc_when_trained_on, distances, marginals_of, read_synthetic

    if not (folder / "data.parquet").exists():
        return dict.fromkeys(UNKNOWN)
    synthetic = read_synthetic(folder, learner)
    marginals = marginals_of(learner, [cohort.of("train") for cohort in cohorts], synthetic)
    return {
        "tstr_auc": auc_when_trained_on(learner, [synthetic], tests),
        **distances(marginals),
        "marginals": marginals,
    }


def _by_node(
    names: Sequence[str], scored: Mapping[str, Sequence[Scored]], majority: Sequence[float | None]
) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(names):
        labels = next(iter(scored.values()))[index][1]
        figures[name] = {"test_patients": len(labels), "test_patients_with_outcome": int(labels.sum())}
        for kind, nodes in scored.items():
            figures[name] |= _judged(kind, nodes[index])
        figures[name]["accuracy_majority"] = majority[index]
    return figures


def _judged(kind: str, scored: Scored) -> dict[str, float | None]:
    return {f"auc_{kind}": mean_over_nodes(auc, [scored]), f"accuracy_{kind}": mean_over_nodes(accuracy, [scored])}


def _majority(cohort: "CohortArrays") -> float | None:
    """Accuracy on a hospital's test patients of always saying what most of its training patients have."""
    train, test = cohort.of("train").labels(), cohort.of("test").labels()
    if not len(train) or not len(test):
        return None
    return float(np.mean((test > 0.5) == (np.mean(train) > 0.5)))


if __name__ == "__main__":
    what, root = sys.argv[1], Path(sys.argv[2])
    measures = {"baselines": measure_baselines, "release": measure_release}
    if what not in measures:
        sys.exit(f"unknown: {what}")
    print(json.dumps(measures[what](root)))
