"""Epsilon of a list of releases, by privacy loss distributions; Renyi differential privacy brackets a calibration.

The unit is one patient at one node, added or removed. Every event is a Gaussian mechanism on an independent Poisson
sample of patients. Reported numbers are the pessimistic estimate of ``dp_accounting`` 0.6 (Doroshenko et al. 2022,
"Connect the dots"); releases on everybody alone have a closed form, which is exact and at once (Balle and Wang 2018,
theorem 8). An epsilon above ``LOOSE_ABOVE`` is reported by its Renyi bound (Mironov 2017), which is valid, larger, and
cheap enough that no hostile plan can exhaust memory.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from vht_federate.domain.budget import POPULATIONS, PrivacyEvent, touching
from vht_federate.errors import BudgetError, InputError

__all__ = ["calibrate_gaussian", "calibrate_training", "epsilon", "epsilon_by_population", "epsilon_rdp"]

LOOSE_ABOVE = 60.0
_TOLERANCE = 2e-3
_MAXIMUM_NOISE = 1e5
_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)  # fractional orders converge too slowly at high rates

_Mechanism = tuple[float, float, int]  # sampling rate, noise multiplier, steps


def epsilon(events: Sequence[PrivacyEvent], delta: float) -> float:
    """Epsilon at ``delta`` of all ``events`` composed jointly; 0.0 for none.

    Every event counts, whatever its population: choose with ``touching`` or ask ``epsilon_by_population``.
    """
    return _pld(_merged(events), _checked(delta))


def epsilon_rdp(events: Sequence[PrivacyEvent], delta: float) -> float:
    """The same by Renyi differential privacy: never below what a patient really pays, usually 5-15 % above PLD."""
    return _rdp(_merged(events), _checked(delta))


def epsilon_by_population(events: Sequence[PrivacyEvent], delta: float) -> dict[str, float]:
    """``{"train": epsilon, "test": epsilon}``: what a patient of each population pays."""
    return {population: epsilon(touching(list(events), population), delta) for population in POPULATIONS}


def calibrate_gaussian(target: float, delta: float, releases: int = 1) -> float:
    """The least noise multiplier (to 4 decimals, rounded up) at which ``releases`` Gaussian releases cost <= target."""
    return _calibrate((), 1.0, releases, target, delta)


def calibrate_training(
    fixed: Sequence[PrivacyEvent], sampling_rate: float, steps: int, target: float, delta: float
) -> float:
    """The least noise multiplier at which ``steps`` private steps, composed with ``fixed``, cost <= ``target``.

    Raises BudgetError VHT-BUDGET-INFEASIBLE where ``fixed`` leaves nothing for training.
    """
    return _calibrate(_merged(fixed), sampling_rate, steps, target, delta)


def _checked(delta: float) -> float:
    if not 0.0 < delta < 1.0:
        raise InputError("delta lies strictly between 0 and 1", code="VHT-INPUT-DELTA")
    return float(delta)


def _merged(events: Sequence[PrivacyEvent]) -> tuple[_Mechanism, ...]:
    """Equal mechanisms counted once. Releases on everybody compose exactly into one Gaussian: 1/s^2 adds up."""
    steps: Counter[tuple[float, float]] = Counter()
    precision = 0.0
    for event in events:
        if event.sampling_rate == 1.0:
            precision += event.steps / event.noise_multiplier**2
        else:
            steps[event.sampling_rate, event.noise_multiplier] += event.steps
    merged = [(rate, noise, count) for (rate, noise), count in sorted(steps.items())]
    if precision:
        merged.append((1.0, round(precision**-0.5, 12), 1))
    return tuple(merged)


@lru_cache(maxsize=4096)
def _rdp(mechanisms: tuple[_Mechanism, ...], delta: float) -> float:
    from dp_accounting.rdp import RdpAccountant

    return _composed(RdpAccountant(orders=_ORDERS), mechanisms, delta)


@lru_cache(maxsize=4096)
def _pld(mechanisms: tuple[_Mechanism, ...], delta: float) -> float:
    from dp_accounting.pld import PLDAccountant

    bound = _rdp(mechanisms, delta)
    if bound > LOOSE_ABOVE:
        return bound
    if len(mechanisms) == 1 and mechanisms[0][0] == 1.0:
        return min(bound, _gaussian(mechanisms[0][1], delta))
    interval = 1e-4 if bound <= 12 else 1e-3  # coarser is still pessimistic; a large epsilon needs a wide grid
    return _composed(PLDAccountant(value_discretization_interval=interval), mechanisms, delta)


def _gaussian(noise: float, delta: float) -> float:
    """Epsilon of one Gaussian release, rounded up in the twelfth decimal."""
    from scipy.special import log_ndtr

    def delta_of(one: float) -> float:
        near, far = 0.5 / noise - one * noise, -0.5 / noise - one * noise
        return math.exp(log_ndtr(near)) - math.exp(one + log_ndtr(far))

    low, high = 0.0, 2 * LOOSE_ABOVE
    while high - low > 1e-12 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) > delta else (low, middle)
    return high


def _composed(accountant, mechanisms: tuple[_Mechanism, ...], delta: float) -> float:  # type: ignore[no-untyped-def]
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

    if not mechanisms:
        return 0.0
    for rate, noise, steps in mechanisms:
        step = GaussianDpEvent(noise)
        accountant.compose(SelfComposedDpEvent(step if rate == 1.0 else PoissonSampledDpEvent(rate, step), steps))
    return float(accountant.get_epsilon(delta))


def _calibrate(fixed: tuple[_Mechanism, ...], rate: float, steps: int, target: float, delta: float) -> float:
    _checked(delta)
    if not (target > 0 and math.isfinite(target) and 0 < rate <= 1 and steps >= 1):
        raise InputError("epsilon > 0, 0 < sampling rate <= 1 and steps >= 1 do not hold", code="VHT-INPUT-BUDGET")
    if _pld(fixed, delta) >= target:
        raise BudgetError(
            "the other releases of this plan already cost the whole epsilon",
            code="VHT-BUDGET-INFEASIBLE",
            hint="raise epsilon, or lower cohort_epsilon",
        )

    def cost(noise: float, *, exactly: bool) -> float:
        event = PrivacyEvent(label="train", population="train", noise_multiplier=noise, sampling_rate=rate, steps=steps)
        mechanisms = _joined(fixed, _merged([event]))
        return _pld(mechanisms, delta) if exactly else _rdp(mechanisms, delta)

    bracket = 0.3
    while bracket < _MAXIMUM_NOISE and cost(bracket, exactly=False) > target:
        bracket *= 1.25
    if bracket >= _MAXIMUM_NOISE:
        raise BudgetError("no amount of noise fits this epsilon", code="VHT-BUDGET-INFEASIBLE")
    return _least(lambda noise: cost(noise, exactly=True), target, bracket)


def _least(cost: Callable[[float], float], target: float, high: float) -> float:
    """The least noise, rounded up to 4 decimals, whose ``cost`` lies in (1 - tolerance, 1] * target.

    Cost falls with noise, nearly as a power of it: false position in logarithms, bisection where that stalls.
    """
    while (cost_high := cost(high)) > target:  # where RDP and PLD differ by rounding only
        high *= 1.05
    low = high * 0.8
    while (cost_low := cost(low)) <= target:
        high, cost_high, low = low, cost_low, low * 0.8
    for turn in range(60):
        if cost_high > (1 - _TOLERANCE) * target or high - low < 1e-4:
            break
        slope = math.log(cost_high / cost_low) / math.log(high / low)
        guess = low * (target * (1 - _TOLERANCE / 2) / cost_low) ** (1 / slope)
        middle = guess if turn % 3 != 2 and low < guess < high else (low + high) / 2
        price = cost(middle)
        if price <= target:
            high, cost_high = middle, price
        else:
            low, cost_low = middle, price
    return math.ceil(high * 1e4) / 1e4


def _joined(fixed: tuple[_Mechanism, ...], more: tuple[_Mechanism, ...]) -> tuple[_Mechanism, ...]:
    everything = [
        PrivacyEvent(label="-", population="all", noise_multiplier=noise, sampling_rate=rate, steps=steps)
        for rate, noise, steps in (*fixed, *more)
    ]
    return _merged(everything)
