"""What noise on the integers costs, by Renyi differential privacy of integer orders.

Sensitivities are of one patient (add or remove one) in units of the grid, over all coordinates of a release together.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction

from vht_federate.errors import InputError

__all__ = ["Renyi", "discrete_gaussian_renyi", "epsilon_of", "skellam_renyi"]

Renyi = Callable[[int], float]  # order > 1 -> bound on the Renyi divergence
_ORDERS = (*range(2, 129), *range(136, 257, 8), 320, 384, 512, 768, 1024)


def discrete_gaussian_renyi(l2_sensitivity: float, variance: Fraction | float) -> Renyi:
    """The bound of the continuous Gaussian of the same variance (Canonne, Kamath, Steinke 2020)."""
    _check(l2_sensitivity, variance)
    return lambda order: order * l2_sensitivity**2 / (2.0 * float(variance))


def skellam_renyi(l1_sensitivity: float, l2_sensitivity: float, variance: Fraction | float) -> Renyi:
    """The bound of Agarwal, Kairouz and Liu (2021, "The Skellam mechanism"): little above the Gaussian's.

    ``variance`` is that of the noise of all honest nodes together.
    """
    _check(l2_sensitivity, variance)
    _check(l1_sensitivity, variance)
    mu, l2 = float(variance), l2_sensitivity**2
    gaussian = discrete_gaussian_renyi(l2_sensitivity, variance)

    def bound(order: int) -> float:
        fine = ((2 * order - 1) * l2 + 6 * l1_sensitivity) / (4 * mu**2)
        return gaussian(order) + min(fine, 3 * l1_sensitivity / (2 * mu))

    return bound


def epsilon_of(releases: Sequence[Renyi], delta: float) -> float:
    """Epsilon at ``delta`` of all ``releases`` composed; 0.0 for none."""
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    if not 0.0 < delta < 1.0:
        raise InputError("delta lies strictly between 0 and 1", code="VHT-INPUT-DELTA")
    if not releases:
        return 0.0
    divergences = [sum(release(order) for release in releases) for order in _ORDERS]
    return float(compute_epsilon(_ORDERS, divergences, delta)[0])


def _check(sensitivity: float, variance: Fraction | float) -> None:
    if not (0 < sensitivity < float("inf") and 0 < variance < float("inf")):
        raise InputError("sensitivity and variance are positive and finite", code="VHT-INPUT-NOISE")
