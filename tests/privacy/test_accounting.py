import math
import subprocess
import sys

import pytest
from pydantic import ValidationError

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.errors import BudgetError, InputError
from vht_federate.privacy.accounting import (
    calibrate_gaussian,
    calibrate_training,
    epsilon,
    epsilon_by_population,
    epsilon_rdp,
)


def gaussian(noise: float, population: str = "train", steps: int = 1) -> PrivacyEvent:
    return PrivacyEvent(label="g", population=population, noise_multiplier=noise, steps=steps)


def sampled(noise: float, rate: float, steps: int) -> PrivacyEvent:
    return PrivacyEvent(label="t", population="train", noise_multiplier=noise, sampling_rate=rate, steps=steps)


def test_the_published_example_of_abadi_et_al_costs_at_most_1_26() -> None:
    event = sampled(4.0, 0.01, 10_000)
    assert 0.8 < epsilon([event], 1e-5) <= 1.26
    assert epsilon([event], 1e-5) <= epsilon_rdp([event], 1e-5)


def test_one_gaussian_costs_what_the_analytic_formula_says() -> None:
    def delta_of(eps: float, sigma: float) -> float:  # Balle and Wang 2018, Theorem 8
        def phi(x: float) -> float:
            return 0.5 * math.erfc(-x / math.sqrt(2))

        return phi(0.5 / sigma - eps * sigma) - math.exp(eps) * phi(-0.5 / sigma - eps * sigma)

    spent = epsilon([gaussian(3.0)], 1e-5)
    assert delta_of(spent, 3.0) <= 1e-5
    assert delta_of(spent * 0.995, 3.0) > 1e-5


def test_rounds_of_steps_cost_the_same_as_one_event_of_all_steps() -> None:
    assert epsilon([sampled(1.5, 0.2, 10)] * 5, 1e-5) == epsilon([sampled(1.5, 0.2, 50)], 1e-5)


def test_no_event_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0.0
    assert epsilon_by_population([], 1e-5) == {"train": 0.0, "test": 0.0}


def test_a_patient_pays_for_its_own_population_and_for_all() -> None:
    spent = epsilon_by_population([gaussian(5, "train"), gaussian(3, "test"), gaussian(10, "all")], 1e-5)
    assert spent["train"] == epsilon([gaussian(5), gaussian(10)], 1e-5)
    assert spent["test"] == epsilon([gaussian(3), gaussian(10)], 1e-5)


@pytest.mark.parametrize("noise", [1e-2, 0.1])
def test_a_plan_with_hardly_any_noise_is_priced_at_once_and_enormous(noise: float) -> None:
    assert epsilon([sampled(noise, 0.5, 1000)], 1e-5) > 60


@pytest.mark.parametrize("noise", [0.0, 1e-322, 1e-6, 1e160, float("nan"), float("inf"), -1.0])
def test_noise_outside_the_range_of_exact_floats_cannot_be_planned(noise: float) -> None:
    with pytest.raises(ValidationError):
        sampled(noise, 0.5, 10)


def test_calibrated_gaussian_releases_use_their_epsilon_and_no_more() -> None:
    noise = calibrate_gaussian(1.0, 1e-5, releases=3)
    assert 0.99 < epsilon([gaussian(noise, steps=3)], 1e-5) <= 1.0


def test_calibrated_training_composed_with_the_rest_uses_its_epsilon_and_no_more() -> None:
    fixed = [gaussian(10), gaussian(6, steps=2)]
    noise = calibrate_training(fixed, 0.25, 60, 3.0, 1e-4)
    assert 2.98 < epsilon([*fixed, sampled(noise, 0.25, 60)], 1e-4) <= 3.0


def test_training_on_everybody_composes_with_fixed_releases_too() -> None:
    noise = calibrate_training([gaussian(10)], 1.0, 20, 2.0, 1e-5)
    assert 1.98 < epsilon([gaussian(10), sampled(noise, 1.0, 20)], 1e-5) <= 2.0


def test_a_budget_that_the_other_releases_use_up_is_refused() -> None:
    with pytest.raises(BudgetError) as caught:
        calibrate_training([gaussian(1)], 0.1, 10, 1.0, 1e-5)
    assert caught.value.code == "VHT-BUDGET-INFEASIBLE"


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_a_delta_outside_its_range_is_refused(delta: float) -> None:
    with pytest.raises(InputError):
        epsilon([gaussian(1)], delta)


def test_importing_and_using_the_accountant_loads_no_torch() -> None:
    code = (
        "import sys; from vht_federate.privacy.accounting import epsilon; "
        "import vht_federate.privacy.ledger, vht_federate.privacy.release, vht_federate.components.job; "
        "from vht_federate.domain.budget import PrivacyEvent as E; "
        "epsilon([E(label='t', population='train', noise_multiplier=2)], 1e-5); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
