"""Noise that repeats: for tests and simulations, worthless for privacy."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["SeededNoise"]


class SeededNoise:
    """A NoiseSource from numpy's PCG64. ``scale=0`` draws zeros as normals (to see a mechanism without its noise)."""

    def __init__(self, seed: int, *, scale: float = 1.0) -> None:
        self._rng = np.random.default_rng(seed)
        self._scale = scale

    def gaussian(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return self._scale * self._rng.standard_normal(shape)

    def uniform(self, size: int) -> NDArray[np.float64]:
        return self._rng.random(size)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        return np.flatnonzero(self.uniform(population) < rate).astype(np.int64)

    def words(self, count: int) -> NDArray[np.uint64]:
        return self._rng.integers(0, 1 << 64, count, dtype=np.uint64)
