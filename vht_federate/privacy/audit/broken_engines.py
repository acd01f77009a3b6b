"""Engines broken on purpose, so that anyone can see the audit fail. Each claims what the plan says, and does less.

They wrap the real round with a changed plan or a changed source of randomness; only an audit can reach them.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vht_federate.domain.plan import TrainingPlan
from vht_federate.privacy.audit.claim import Plant
from vht_federate.privacy.engine import PerPatientEngine
from vht_federate.privacy.noise import NoiseSource
from vht_federate.privacy.release import Private
from vht_federate.privacy.training import Trained, TrainingTensors, train_round

__all__ = ["Engine", "planted"]

Engine = Callable[[PerPatientEngine, Private[TrainingTensors], float, TrainingPlan, NoiseSource, float | None], Trained]
_NO_CLIPPING = 1e6  # clipping norms


class _Silent:
    """Randomness whose normals are zero."""

    def __init__(self, inner: NoiseSource) -> None:
        self._inner = inner

    def gaussian(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return np.zeros(shape)

    def uniform(self, size: int) -> NDArray[np.float64]:
        return self._inner.uniform(size)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        return self._inner.poisson_sample(population, rate)


class _Shuffled(_Silent):
    """Epochs of fixed batches instead of independent draws, as most data loaders make them."""

    def __init__(self, inner: NoiseSource) -> None:
        super().__init__(inner)
        self._order = np.zeros(0, dtype=np.int64)

    def gaussian(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return self._inner.gaussian(shape)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        size = max(1, round(rate * population))
        if len(self._order) < size:
            self._order = np.argsort(self._inner.uniform(population))
        batch, self._order = self._order[:size], self._order[size:]
        return np.sort(batch).astype(np.int64)


def planted(plant: Plant, noise: NoiseSource) -> tuple[Engine, NoiseSource]:
    """The broken engine, and the randomness to run it with."""
    if plant is Plant.SIGMA_HALVED:
        return _with_plan(lambda plan: {"noise_multiplier": plan.noise_multiplier / 2}), noise
    if plant is Plant.NO_CLIPPING:
        return _with_plan(_unclipped), noise
    return train_round, _Silent(noise) if plant is Plant.NO_NOISE else _Shuffled(noise)


def _unclipped(plan: TrainingPlan) -> dict[str, float]:
    """The same noise, and a clipping norm that nothing reaches."""
    return {
        "clipping_norm": plan.clipping_norm * _NO_CLIPPING,
        "noise_multiplier": plan.noise_multiplier / _NO_CLIPPING,
    }


def _with_plan(change: Callable[[TrainingPlan], dict[str, float]]) -> Engine:
    def run(
        engine: PerPatientEngine,
        data: Private[TrainingTensors],
        patients: float,
        plan: TrainingPlan,
        noise: NoiseSource,
        clipping_norm: float | None,
    ) -> Trained:
        return train_round(engine, data, patients, plan.model_copy(update=change(plan)), noise, clipping_norm)

    return run
