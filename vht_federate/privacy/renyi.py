"""Renyi divergences of events on one grid of orders: numbers that add up, so that many accounts are priced at once.

Where ``accounting`` composes one list of events as exactly as it can, this adds vectors: a thousand histories are one
matrix product. Bounds are those of ``dp_accounting`` 0.6 (Mironov, Talwar and Zhang 2019 for subsampled Gaussians).
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vht_federate.domain.budget import PrivacyEvent

__all__ = ["ORDERS", "renyi_curve", "renyi_epsilon"]

ORDERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 128, 256)
Curve = NDArray[np.float64]  # [..., orders]


def renyi_curve(events: Iterable[PrivacyEvent]) -> Curve:
    """Upper bounds [orders] of the divergence of all ``events`` together, at each of ``ORDERS``; zeros for none."""
    total = np.zeros(len(ORDERS))
    for event in events:
        total += event.steps * _of_one(event.sampling_rate, event.noise_multiplier)
    return total


def renyi_epsilon(curves: Curve, delta: Curve | float) -> Curve:
    """Epsilon [..., orders] that each order alone gives at ``delta`` [orders] or one for all; 0 where nothing is spent.

    Canonne, Kamath and Steinke 2020, Proposition 12.
    """
    orders = np.array(ORDERS, dtype=float)
    found = curves + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return np.where(curves == 0.0, 0.0, np.maximum(found, 0.0))


@lru_cache(maxsize=4096)
def _of_one(rate: float, noise: float) -> Curve:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    step = GaussianDpEvent(noise)
    accountant = RdpAccountant(orders=ORDERS)
    accountant.compose(step if rate == 1.0 else PoissonSampledDpEvent(rate, step))
    found: Curve = np.array(accountant.rdp, dtype=float)
    found.flags.writeable = False
    return found
