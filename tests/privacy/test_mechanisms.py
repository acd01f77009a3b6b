"""The closed set of mechanisms that a ledger holds and composes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from connector.governance.ledger_rows import loaded
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.errors import BudgetError
from vht_federate.privacy.accounting import epsilon, epsilon_rdp
from vht_federate.privacy.discrete_accounting import discrete_gaussian_renyi, epsilon_of, skellam_renyi
from vht_federate.privacy.filters import RdpFilter
from vht_federate.privacy.ledger import Account
from vht_federate.privacy.renyi import renyi_curve


def event(mechanism: str, noise: float = 5.0, steps: int = 1, **more: float) -> PrivacyEvent:
    return PrivacyEvent.model_validate(
        {"label": "g", "population": "train", "noise_multiplier": noise, "steps": steps, "mechanism": mechanism, **more}
    )


def skellam(noise: float = 5.0, grid: float = 100.0, steps: int = 1) -> PrivacyEvent:
    return event("skellam", noise, steps, l2_sensitivity=grid, l1_sensitivity=10 * grid)


def test_noise_on_the_integers_costs_what_its_own_accounting_says() -> None:
    assert epsilon([event("discrete-gaussian", 3.0)], 1e-5) == pytest.approx(
        epsilon_of([discrete_gaussian_renyi(10.0, 900.0)], 1e-5), rel=1e-3
    )
    assert epsilon([skellam(3.0)], 1e-5) == pytest.approx(
        epsilon_of([skellam_renyi(1000.0, 100.0, 300.0**2)], 1e-5), rel=1e-3
    )


def test_skellam_noise_costs_more_than_gaussian_noise_and_on_a_fine_grid_hardly_more() -> None:
    gaussian, fine, coarse = (
        epsilon_rdp([privacy_event], 1e-5) for privacy_event in (event("gaussian"), skellam(), skellam(grid=0.3))
    )
    assert gaussian < fine < 1.01 * gaussian
    assert coarse > 1.02 * gaussian


def test_one_laplace_release_and_one_choice_cost_at_most_their_pure_epsilon() -> None:
    assert epsilon([event("laplace", 2.0)], 1e-9) == pytest.approx(0.5, abs=1e-3)
    assert epsilon([event("exponential", 10.0)], 1e-5) < 10 * epsilon([event("exponential", 10.0)] * 100, 1e-5)


def test_a_thousand_choices_cost_the_square_root_as_concentrated_privacy_says() -> None:
    rho = 1000 * 0.01**2 / 8  # Cesar and Rogers 2021
    bound = rho + 2 * math.sqrt(rho * math.log(1e5))
    assert epsilon([event("exponential", 100.0, steps=1000)], 1e-5) <= bound < 1000 * 0.01


KINDS = st.one_of(
    st.builds(event, st.sampled_from(["gaussian", "discrete-gaussian", "laplace", "exponential"]), st.floats(2, 20)),
    st.builds(skellam, st.floats(2, 20)),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(KINDS, min_size=1, max_size=5))
def test_reports_never_exceed_renyi_and_renyi_never_the_filter(events: list[PrivacyEvent]) -> None:
    counted = float(RdpFilter(3.0, 1e-5).charged(renyi_curve(events)))
    assert 0 < epsilon(events, 1e-5) <= epsilon_rdp(events, 1e-5) + 1e-9 <= counted + 2e-9
    assert epsilon(events, 1e-5) <= epsilon([*events, event("laplace", 9.0)], 1e-5) + 1e-6


def test_a_ledger_holds_any_of_them_and_gives_back_what_was_put_in() -> None:
    events = [event("gaussian"), event("discrete-gaussian"), skellam(), event("laplace", 10.0), event("exponential", 9)]
    again = loaded([privacy_event.model_dump(mode="json") for privacy_event in events])
    assert again == tuple(events)
    account = Account(3.0, 1e-5).reserve("v", again).draw("v", again[:3])
    assert account.spent_by("v") == again[:3]
    assert 0 < account.epsilon_spent()["train"] < account.epsilon_if_spent()["train"] <= 3.0


def test_a_gaussian_event_is_written_as_it_always_was() -> None:
    assert set(event("gaussian").model_dump(mode="json")) == {
        "label", "population", "noise_multiplier", "sampling_rate", "steps"}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"mechanism": "geometric"},
        {"mechanism": "skellam"},
        {"mechanism": "skellam", "l2_sensitivity": 1.0},
        {"mechanism": "laplace", "sampling_rate": 0.5},
        {"mechanism": "gaussian", "l1_sensitivity": 1.0},
        {"mechanism": "exponential", "epsilon": 1.0},
    ],
)
def test_an_unknown_or_half_said_event_is_refused_by_plan_and_ledger(wrong: dict[str, object]) -> None:
    fields = {"label": "g", "population": "train", "noise_multiplier": 5.0, **wrong}
    with pytest.raises(ValidationError):
        PrivacyEvent.model_validate(fields)
    with pytest.raises(BudgetError) as caught:
        loaded([fields])
    assert caught.value.code == "VHT-BUDGET-EVENT"
