"""Epsilon of a list of releases, by privacy loss distributions; Renyi differential privacy brackets a calibration.

The unit is one patient at one node, added or removed. Every event is a mechanism of the closed set in
``domain.budget``. Reported numbers are the pessimistic estimate of ``dp_accounting`` 0.6 (Doroshenko et al. 2022,
"Connect the dots"); Gaussian releases on everybody alone have a closed form, which is exact and at once (Balle and Wang
2018, theorem 8). Lists with noise on the integers or an exponential mechanism are reported by the sum of their Renyi
bounds, since their loss distributions depend on the data. An epsilon above ``LOOSE_ABOVE`` is reported by its Renyi
bound (Mironov 2017), which is valid, larger, and cheap. A list whose distribution would take too long to compute
(``accounting_cost``) is laid out on a coarser grid, which is pessimistic still, and reported by its Renyi bound where
that is not enough; one whose steps lose less than the usual grid can tell apart is laid out on a finer one where that
is cheap. A plan that is too costly by itself is refused before it is priced.

Where samples are truncated, a hundredth of delta is set aside for overflows (``truncation``); where that is not enough
there is no epsilon at this delta, and infinity is what is reported.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from vht_federate.domain.budget import POPULATIONS, PrivacyEvent, touching
from vht_federate.errors import BudgetError, InputError
from vht_federate.privacy.accounting_cost import MOST_POINTS, MOST_STEPS, loss_deviation, points
from vht_federate.privacy.renyi import Mechanism, mechanism_of, step_curve
from vht_federate.privacy.truncation import SET_ASIDE, covers, overflow_chance

__all__ = [
    "calibrate_gaussian",
    "calibrate_training",
    "epsilon",
    "epsilon_by_population",
    "epsilon_rdp",
    "require_priceable",
]

LOOSE_ABOVE = 60.0
MOST_POINTS_TOGETHER = 4 * MOST_POINTS  # of plans composed, on one grid
_GRIDS = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 1e-3, 1e-2)  # widths
_FINE_POINTS = 2 * MOST_POINTS  # what a grid finer than the usual may cost
_TOLERANCE = 2e-3
_MAXIMUM_NOISE = 1e5
_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)  # fractional orders converge too slowly at high rates

_Steps = tuple[Mechanism, int]


def epsilon(events: Sequence[PrivacyEvent], delta: float) -> float:
    """Epsilon at ``delta`` of all ``events`` composed jointly; 0.0 for none.

    Every event counts, whatever its population: choose with ``touching`` or ask ``epsilon_by_population``.
    """
    return _beside_overflows(_pld, events, delta)


def epsilon_rdp(events: Sequence[PrivacyEvent], delta: float) -> float:
    """The same by Renyi differential privacy: never below what a patient really pays, usually 5-15 % above PLD."""
    return _beside_overflows(_rdp, events, delta)


def epsilon_by_population(events: Sequence[PrivacyEvent], delta: float) -> dict[str, float]:
    """``{"train": epsilon, "test": epsilon}``: what a patient of each population pays."""
    return {population: epsilon(touching(list(events), population), delta) for population in POPULATIONS}


def require_priceable(events: Sequence[PrivacyEvent], delta: float) -> None:
    """Raise BudgetError VHT-BUDGET-COSTLY where one plan's ``events`` would keep an accountant busy for long."""
    for population in POPULATIONS:
        mechanisms = _merged(touching(list(events), population))
        few_steps = all(steps <= MOST_STEPS for _, steps in mechanisms)
        if few_steps and _loose(mechanisms, _checked(delta)):
            continue
        if few_steps and points(mechanisms, _interval(_rdp(mechanisms, delta))) <= MOST_POINTS:
            continue
        raise BudgetError(
            f"this plan takes too long to account for: at most {MOST_STEPS} steps, and no very small noise",
            code="VHT-BUDGET-COSTLY",
            hint="fewer rounds or local steps, or more noise",
        )


def calibrate_gaussian(target: float, delta: float, releases: int = 1) -> float:
    """The least noise multiplier (to 4 decimals, rounded up) at which ``releases`` Gaussian releases cost <= target."""
    return _calibrate((), 1.0, releases, target, delta)


def calibrate_training(
    fixed: Sequence[PrivacyEvent], sampling_rate: float, steps: int, target: float, delta: float, chance: float = 0.0
) -> float:
    """The least noise multiplier at which ``steps`` private steps, composed with ``fixed``, cost <= ``target``.

    ``chance``: ``overflow_chance`` of those steps, where their samples are truncated. Raises BudgetError
    VHT-BUDGET-INFEASIBLE where ``fixed`` leaves nothing for training, or batches overflow too often.
    """
    chance += overflow_chance(fixed)
    if not covers(_checked(delta), target, chance):
        raise BudgetError(
            "batches overflow too often for this delta",
            code="VHT-BUDGET-INFEASIBLE",
            hint="a larger batch costs time and no privacy",
        )
    return _calibrate(_merged(fixed), sampling_rate, steps, target, _left(delta, chance))


def _beside_overflows(
    price: Callable[[tuple[_Steps, ...], float], float], events: Sequence[PrivacyEvent], delta: float
) -> float:
    chance = overflow_chance(events)
    cost = price(_merged(events), _left(_checked(delta), chance))
    return cost if covers(delta, cost, chance) else math.inf


def _left(delta: float, chance: float) -> float:
    """Of delta, beside overflows."""
    return (1.0 - SET_ASIDE) * delta if chance else delta


def _checked(delta: float) -> float:
    if not 0.0 < delta < 1.0:
        raise InputError("delta lies strictly between 0 and 1", code="VHT-INPUT-DELTA")
    return float(delta)


def _merged(events: Sequence[PrivacyEvent]) -> tuple[_Steps, ...]:
    return _joined((mechanism_of(event), event.steps) for event in events)


def _joined(parts: Iterable[_Steps]) -> tuple[_Steps, ...]:
    """Equal mechanisms counted once. Gaussians on everybody compose exactly into one: 1/s^2 adds up."""
    steps: Counter[Mechanism] = Counter()
    precision = 0.0
    for mechanism, count in parts:
        name, rate, noise, *_ = mechanism
        if name == "gaussian" and rate == 1.0:
            precision += count / noise**2
        else:
            steps[mechanism] += count
    merged = sorted(steps.items())
    if precision:
        merged.append((("gaussian", 1.0, round(precision**-0.5, 12), 0.0, 0.0), 1))
    return tuple(merged)


@lru_cache(maxsize=4096)
def _rdp(mechanisms: tuple[_Steps, ...], delta: float) -> float:
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    if not mechanisms:
        return 0.0
    total = sum(count * step_curve(mechanism, _ORDERS) for mechanism, count in mechanisms)
    return float(compute_epsilon(_ORDERS, total, delta)[0])


@lru_cache(maxsize=4096)
def _pld(mechanisms: tuple[_Steps, ...], delta: float) -> float:
    bound = _rdp(mechanisms, delta)
    if _closed_form(mechanisms):
        return bound if bound > LOOSE_ABOVE else min(bound, _gaussian(mechanisms[0][0][2], delta))
    if _loose(mechanisms, delta) or any(steps > MOST_STEPS for _, steps in mechanisms):
        return bound
    interval = _affordable(mechanisms, bound)
    return bound if interval is None else min(bound, _composed(mechanisms, interval, delta))


def _closed_form(mechanisms: tuple[_Steps, ...]) -> bool:
    return len(mechanisms) == 1 and mechanisms[0][0][:2] == ("gaussian", 1.0)


def _loose(mechanisms: tuple[_Steps, ...], delta: float) -> bool:
    """Nothing, or what is not laid out on a grid at all."""
    if not mechanisms or _closed_form(mechanisms) or _rdp(mechanisms, delta) > LOOSE_ABOVE:
        return True
    return any(name not in ("gaussian", "laplace") for (name, *_), _ in mechanisms)


def _interval(bound: float) -> float:
    """Usual width of the grid. Coarser is still pessimistic; a large epsilon needs a wide grid."""
    return 1e-4 if bound <= 12 else 1e-3


def _affordable(mechanisms: tuple[_Steps, ...], bound: float) -> float | None:
    """Width of the grid: the usual one or, where that costs too much, the next that does not; None where none is left.

    Finer where that costs next to nothing and the losses of some step are smaller than four usual widths: on the usual
    grid such an epsilon would be up to a third too large.
    """
    usual = _interval(bound)
    wanted = min(loss_deviation(mechanism) for mechanism, _ in mechanisms) / 4
    for interval, wider in zip(_GRIDS, (*_GRIDS[1:], math.inf), strict=True):
        fine = interval < usual
        if fine and wider <= wanted:
            continue  # finer than is of use
        if points(mechanisms, interval) <= (_FINE_POINTS if fine else MOST_POINTS_TOGETHER):
            return interval
    return None


def _gaussian(noise: float, delta: float) -> float:
    """Epsilon of one Gaussian release, rounded up in the twelfth decimal."""
    from scipy.special import log_ndtr

    def delta_of(eps: float) -> float:
        near, far = 0.5 / noise - eps * noise, -0.5 / noise - eps * noise
        return math.exp(log_ndtr(near)) - math.exp(eps + log_ndtr(far))

    low, high = 0.0, 2 * LOOSE_ABOVE
    while high - low > 1e-12 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) > delta else (low, middle)
    return high


def _composed(mechanisms: tuple[_Steps, ...], interval: float, delta: float) -> float:
    """As ``dp_accounting``'s PLDAccountant composes them."""
    from dp_accounting.pld.privacy_loss_distribution import identity

    composed = identity(value_discretization_interval=interval)
    for mechanism, steps in mechanisms:
        composed = composed.compose(_distribution(mechanism, interval).self_compose(steps))
    return float(composed.get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def _distribution(mechanism: Mechanism, interval: float):  # type: ignore[no-untyped-def]
    """Privacy loss of one step: most of the work, and the same for every round of a plan."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism, from_laplace_mechanism

    name, rate, noise, *_ = mechanism
    create = from_gaussian_mechanism if name == "gaussian" else from_laplace_mechanism
    return create(noise, sampling_prob=rate, value_discretization_interval=interval, use_connect_dots=True)


def _calibrate(fixed: tuple[_Steps, ...], rate: float, steps: int, target: float, delta: float) -> float:
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
        mechanisms = _joined((*fixed, (("gaussian", rate, noise, 0.0, 0.0), steps)))
        return _pld(mechanisms, delta) if exactly else _rdp(mechanisms, delta)

    bracket = 0.3
    while bracket < _MAXIMUM_NOISE and cost(bracket, exactly=False) > target:
        bracket *= 1.25
    if bracket >= _MAXIMUM_NOISE:
        raise BudgetError("no amount of noise fits this epsilon", code="VHT-BUDGET-INFEASIBLE")
    return _least(lambda noise: cost(noise, exactly=True), target, bracket)


def _least(cost: Callable[[float], float], target: float, high: float) -> float:
    """The least noise, rounded up to 4 decimals, whose ``cost`` lies in (1 - tolerance, 1] * target.

    Cost falls with noise, nearly as a power of it: false position in logarithms, bisection where that stalls or where
    delta alone already covers the noisier end, whose cost is 0.
    """
    while (cost_high := cost(high)) > target:  # where RDP and PLD differ by rounding only
        high *= 1.05
    low = high * 0.8
    while (cost_low := cost(low)) <= target:
        high, cost_high, low = low, cost_low, low * 0.8
    for turn in range(60):
        if cost_high > (1 - _TOLERANCE) * target or high - low < 1e-4:
            break
        guess = low
        if cost_high:
            slope = math.log(cost_high / cost_low) / math.log(high / low)
            guess = low * (target * (1 - _TOLERANCE / 2) / cost_low) ** (1 / slope)
        middle = guess if turn % 3 != 2 and low < guess < high else (low + high) / 2
        price = cost(middle)
        if price <= target:
            high, cost_high = middle, price
        else:
            low, cost_low = middle, price
    return math.ceil(high * 1e4) / 1e4
