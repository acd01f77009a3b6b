import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.errors import BudgetError
from vht_federate.privacy.ledger import Account


def event(noise: float = 5.0, population: str = "train", label: str = "g") -> PrivacyEvent:
    return PrivacyEvent(label=label, population=population, noise_multiplier=noise)


EMPTY = Account(epsilon=3.0, delta=1e-5)


def test_what_is_reserved_is_not_yet_spent_but_counts_against_the_cap() -> None:
    account = EMPTY.reserve("v1", [event(1.8)])
    assert account.epsilon_spent() == {"train": 0.0, "test": 0.0}
    assert account.epsilon_if_spent()["train"] > 1.9
    with pytest.raises(BudgetError) as caught:
        account.reserve("v2", [event(1.8)])
    assert caught.value.code == "VHT-BUDGET-CAP"


def test_test_patients_do_not_pay_for_training() -> None:
    account = EMPTY.reserve("v1", [event(2.0, "train")]).reserve("v2", [event(2.0, "test")])
    assert account.epsilon_if_spent()["test"] == account.epsilon_if_spent()["train"] <= 3.0


def test_drawing_moves_an_event_from_reserved_to_spent_once() -> None:
    account = EMPTY.reserve("v1", [event(8), event(9)]).draw("v1", [event(8)])
    assert account.reserved("v1") == (event(9),)
    assert account.spent_by("v1") == (event(8),)
    with pytest.raises(BudgetError) as caught:
        account.draw("v1", [event(8)])
    assert caught.value.code == "VHT-BUDGET-RESERVATION"


def test_equal_events_are_counted_not_merged() -> None:
    account = EMPTY.reserve("v1", [event(9), event(9)]).draw("v1", [event(9)])
    assert account.reserved("v1") == (event(9),)
    with pytest.raises(BudgetError):
        account.draw("v1", [event(9), event(9)])


def test_a_visit_cannot_draw_what_another_holds() -> None:
    account = EMPTY.reserve("v1", [event(9)])
    with pytest.raises(BudgetError):
        account.draw("v2", [event(9)])


def test_release_gives_back_only_what_was_not_drawn() -> None:
    account = EMPTY.reserve("v1", [event(3), event(3, label="other")]).draw("v1", [event(3)])
    freed = account.release("v1")
    assert freed.reserved("v1") == ()
    assert freed.epsilon_if_spent() == freed.epsilon_spent() == account.epsilon_spent()
    with pytest.raises(BudgetError):
        freed.draw("v1", [event(3, label="other")])


def test_a_visit_reserves_once() -> None:
    with pytest.raises(BudgetError) as caught:
        EMPTY.reserve("v1", [event(20)]).reserve("v1", [event(20)])
    assert caught.value.code == "VHT-BUDGET-RESERVED"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reserve", "draw", "release"]),
            st.sampled_from(["v1", "v2"]),
            st.lists(st.sampled_from([event(4), event(6), event(4, "test")]), max_size=3),
        ),
        max_size=12,
    )
)
def test_no_sequence_of_operations_passes_the_cap_or_loses_a_spent_event(
    operations: list[tuple[str, str, list[PrivacyEvent]]],
) -> None:
    account = EMPTY
    for name, visit, events in operations:
        before = account
        try:
            account = account.release(visit) if name == "release" else getattr(account, name)(visit, events)
        except BudgetError:
            assert account == before
        assert account.spent[: len(before.spent)] == before.spent
        assert max(account.epsilon_if_spent().values()) <= account.epsilon + 1e-6
