"""Values for the inputs of a shipped component."""

import numpy as np

from vht_federate.components.registry import find_component

__all__ = ["made_up"]


def made_up(name: str, profile: str, records: int, seed: int) -> np.ndarray:
    """Clinical values within bounds or far outside them, some missing."""
    rng = np.random.default_rng(seed)
    ports = find_component(name).component.inputs(profile)
    columns = [
        rng.uniform(*port.bounds, records) * rng.choice([1, 1, 1, 1e6], records)
        if port.bounds
        else rng.integers(0, 2, records)
        for port in ports
    ]
    values = np.stack(columns, axis=1).astype(np.float64)
    values[rng.random(values.shape) < 0.2] = np.nan
    return values
