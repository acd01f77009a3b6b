"""Training outside the federation, on data one may see: baselines of the demo and the benchmarks. Imports torch.

The private runs use the very functions an enclave uses, so that a figure here differs from a federated one only in
who holds the data.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch.nn.functional import binary_cross_entropy_with_logits

from connector.fhir import ingest
from connector.views import CohortSpecification, build_cohort
from vht_federate.components.job import CohortArrays
from vht_federate.components.loader import load_model
from vht_federate.components.registry import find_component
from vht_federate.domain.plan import StudyPlan
from vht_federate.privacy.engine import PerPatientEngine
from vht_federate.privacy.noise import NoiseSource
from vht_federate.privacy.release import Private
from vht_federate.privacy.training import TrainingTensors, load_weights, noised_count, train_round
from vht_federate.secagg import protocol_of

__all__ = ["Learner", "cohorts_of"]

Weights = dict[str, NDArray[np.float32]]
OPEN_KEY = b"\0" * 32  # pseudonyms of data that the demo itself made


def cohorts_of(hospitals: Mapping[str, Path], learner: "Learner", place: Path) -> dict[str, CohortArrays]:
    """Each hospital's cohort, built by the connector's own intake and view; kept under ``place`` for the next call."""
    cohorts = {}
    for name, folder in sorted(hospitals.items()):
        cohort = place / name / "cohort"
        if not (cohort / "cohort.safetensors").exists():
            ingest(folder, place / name / "store", node_key=OPEN_KEY, dataset=name)
            specification = CohortSpecification.of_every_column(learner.component, learner.profile)
            build_cohort(place / name / "store", specification, cohort)
        arrays = load_file(cohort / "cohort.safetensors")
        cohorts[name] = CohortArrays(arrays["values"], arrays["outcome"], arrays["patient"], arrays["bucket"])
    return cohorts


class Learner:
    """Fits one component and profile on cohorts in the open."""

    def __init__(self, component: str, profile: str) -> None:
        self.installed = find_component(component)
        self.component = self.installed.component
        self.profile = profile

    def model(self) -> torch.nn.Module:
        return load_model(self.installed.folder, self.profile)

    def fit_pooled(self, cohorts: Sequence[CohortArrays], *, penalty: float = 1e-5) -> Weights:
        """Without privacy, on all records together: full-batch L-BFGS, patients weigh alike."""
        model = self.model()
        values = torch.from_numpy(np.concatenate([cohort.values for cohort in cohorts]))
        outcome = torch.from_numpy(np.concatenate([cohort.outcome for cohort in cohorts]))
        sizes = np.concatenate([1.0 / np.bincount(c.patient, minlength=c.patients)[c.patient] for c in cohorts])
        weight = torch.from_numpy(sizes.astype(np.float32))
        optimiser = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            loss = binary_cross_entropy_with_logits(model(values), outcome, weight=weight, reduction="sum")
            total = loss / weight.sum() + penalty * sum((p**2).sum() for p in model.parameters())
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return {name: value.detach().numpy() for name, value in model.named_parameters()}

    def fit_private(
        self,
        cohorts: Sequence[CohortArrays],
        plan: StudyPlan,
        noise: NoiseSource,
        *,
        after_round: Callable[[int, Weights], None] | None = None,
    ) -> Weights:
        """The federation's own algorithm over ``cohorts`` as nodes: full noise at each, weighted mean each round."""
        model, protocol = self.model(), protocol_of(plan.trust_model)
        engine = PerPatientEngine(model, binary_cross_entropy_with_logits)
        data = {
            f"node-{i}": Private(TrainingTensors(c.values, c.outcome, c.patient, c.patients))
            for i, c in enumerate(cohorts)
        }
        counts = {name: noised_count(tensors, plan.training, noise) for name, tensors in data.items()}
        norms: dict[str, float] = {}
        weights: Weights = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
        for number in range(1, plan.training.rounds + 1):
            updates = {}
            for name, tensors in data.items():
                load_weights(model, weights)
                trained = train_round(engine, tensors, counts[name], plan.training, noise, norms.get(name))
                updates[name], norms[name] = trained.weights, trained.clipping_norm
            weights = protocol.combine(updates, counts)
            if after_round:
                after_round(number, weights)
        return weights

    def predict(
        self, weights: Mapping[str, NDArray[Any]], cohorts: Sequence[CohortArrays]
    ) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """For each cohort: (score, label) per patient; a patient's score is the mean over its records."""
        model = self.model()
        load_weights(model, weights)
        scored = []
        for cohort in cohorts:
            with torch.no_grad():
                risk = torch.sigmoid(model(torch.from_numpy(cohort.values))).numpy().astype(np.float64)
            scored.append((cohort.mean_by_patient(risk), cohort.labels().astype(np.float64)))
        return scored
