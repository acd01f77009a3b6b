"""Renyi divergences of events on one grid of orders: numbers that add up, so that many accounts are priced at once.

Where ``accounting`` composes one list of events as exactly as it can, this adds vectors: a thousand histories are one
matrix product. Bounds are those of ``dp_accounting`` 0.6 (Mironov, Talwar and Zhang 2019 for subsampled Gaussians,
Mironov 2017 for Laplace noise), of ``discrete_accounting`` for noise on the integers, and epsilon^2 / 8 concentrated
differential privacy for the exponential mechanism (Cesar and Rogers 2021). Beside the orders a curve has one more
number that adds up: the chance that a truncated sample overflowed (``truncation``).
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.privacy.discrete_accounting import discrete_gaussian_renyi, skellam_renyi
from vht_federate.privacy.truncation import overflow_chance

__all__ = ["COORDINATES", "ORDERS", "Mechanism", "mechanism_of", "renyi_curve", "renyi_epsilon", "step_curve"]

ORDERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 128, 256)
COORDINATES = len(ORDERS) + 1
Curve = NDArray[np.float64]  # [..., orders], or with the chance of an overflow last [..., coordinates]
Mechanism = tuple[str, float, float, float, float]  # name, sampling rate, noise multiplier, L2 and L1 sensitivity


def mechanism_of(event: PrivacyEvent) -> Mechanism:
    """All of one step that matters to accounting."""
    l2, l1 = event.l2_sensitivity or 0.0, event.l1_sensitivity or 0.0
    return event.mechanism, event.sampling_rate, event.noise_multiplier, l2, l1


def renyi_curve(events: Iterable[PrivacyEvent]) -> Curve:
    """Upper bounds of the divergence of all ``events`` together, at each of ``ORDERS``, and their ``overflow_chance``.

    [coordinates]; zeros for none.
    """
    total = np.zeros(COORDINATES)
    for event in events:
        total[:-1] += event.steps * step_curve(mechanism_of(event), ORDERS)
        total[-1] += overflow_chance([event])
    return total


def renyi_epsilon(curves: Curve, delta: Curve | float) -> Curve:
    """Epsilon [..., orders] that each order alone gives at ``delta`` [orders] or one for all; 0 where nothing is spent.

    Canonne, Kamath and Steinke 2020, Proposition 12.
    """
    orders = np.array(ORDERS, dtype=float)
    epsilons = curves + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return np.where(curves == 0.0, 0.0, np.maximum(epsilons, 0.0))


@lru_cache(maxsize=4096)
def step_curve(mechanism: Mechanism, orders: tuple[int, ...]) -> Curve:
    """Upper bounds [orders] of the divergence of one step."""
    name, rate, noise, l2, l1 = mechanism
    if name == "discrete-gaussian":
        bound = discrete_gaussian_renyi(1.0, noise**2)
        curve = np.array([bound(order) for order in orders])
    elif name == "skellam":
        bound = skellam_renyi(l1, l2, (noise * l2) ** 2)
        curve = np.array([bound(order) for order in orders])
    elif name == "exponential":
        curve = np.array(orders, dtype=float) / (8 * noise**2)
    else:
        curve = _by_library(name, rate, noise, orders)
    curve.flags.writeable = False
    return curve


def _by_library(name: str, rate: float, noise: float, orders: tuple[int, ...]) -> Curve:
    from dp_accounting import GaussianDpEvent, LaplaceDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    step = {"gaussian": GaussianDpEvent, "laplace": LaplaceDpEvent}[name](noise)
    accountant = RdpAccountant(orders=orders)
    accountant.compose(step if rate == 1.0 else PoissonSampledDpEvent(rate, step))
    return np.array(accountant.rdp, dtype=float)
