"""Participation groups: patients with the same history share an account, and nobody passes a cap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vht_federate.domain.budget import PrivacyEvent, touching
from vht_federate.errors import BudgetError, InputError
from vht_federate.privacy.accounting import epsilon
from vht_federate.privacy.accounts import Cap, PatientAccounts, Run
from vht_federate.privacy.participation import Group, Included, Participation

CAP = Cap("patient", 3.0, 1e-5)


def gaussian(noise: float, population: str = "train") -> PrivacyEvent:
    return PrivacyEvent(label="g", population=population, noise_multiplier=noise)


def people(*numbers: int) -> Included:
    """Odd numbers are on the test side."""
    ordered = np.array(sorted(numbers), dtype=np.uint64)
    return Included(ordered, (ordered % 2 == 1).astype(bool))


def test_subjects_in_any_order_become_patients_once_each() -> None:
    keys = [f"{number:016x}{'00' * 24}" for number in (7, 2, 7, 4)]
    included = Included.of(keys, [True, False, True, False])
    assert included.subjects.tolist() == [2, 4, 7]
    assert included.test.tolist() == [False, False, True]


def test_patients_out_of_order_are_refused() -> None:
    with pytest.raises(InputError):
        Included(np.array([3, 2], dtype=np.uint64), np.array([False, False]))


def test_groups_split_on_inclusion_and_merge_when_a_run_drew_nothing() -> None:
    first = Participation.empty().place("a", people(0, 2, 4))
    assert first.groups == (Group("train", ("a",)),)
    second = first.place("b", people(2, 4, 6))
    sizes = dict(zip(second.groups, second.sizes().tolist(), strict=True))
    assert sizes == {Group("train", ("a",)): 1, Group("train", ("a", "b")): 2, Group("train", ("b",)): 1}
    gone = second.remove("b")
    assert (gone.subjects.tolist(), gone.groups, gone.sizes().tolist()) == ([0, 2, 4], first.groups, [3])
    assert len(second.remove("a").remove("b")) == 0


def test_a_run_is_placed_once_and_nobody_changes_sides_of_the_split() -> None:
    participation = Participation.empty().place("a", people(1, 2))
    for run, included in (("a", people(2)), ("b", Included(np.array([1], dtype=np.uint64), np.array([False])))):
        with pytest.raises(BudgetError) as caught:
            participation.place(run, included)
        assert caught.value.code == "VHT-BUDGET-PARTICIPATION"


def test_neither_patients_nor_their_groups_are_shown() -> None:
    assert "987654321" not in repr(people(987654321)) + repr(Participation.empty().place("a", people(987654321)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sets(st.integers(0, 30)), st.booleans()), max_size=12))
def test_histories_are_those_of_a_plain_dictionary(steps: list[tuple[str, set[int], bool]]) -> None:
    participation = Participation.empty()
    plain: dict[int, list[str]] = {}
    for run, numbers, taken_back in steps:
        if run not in participation.placed:
            participation = participation.place(run, people(*numbers))
            for number in numbers:
                plain.setdefault(number, []).append(run)
        if taken_back:
            participation = participation.remove(run)
            plain = {number: left for number, runs in plain.items() if (left := [name for name in runs if name != run])}
    assert participation.subjects.tolist() == sorted(plain)
    groups = {int(n): participation.groups[g] for n, g in zip(participation.subjects, participation.group, strict=True)}
    assert groups == {n: Group("test" if n % 2 else "train", tuple(runs)) for n, runs in plain.items()}
    assert participation.sizes().sum() == len(plain)
    assert (participation.sizes() > 0).all()


def test_a_run_is_refused_when_any_included_patient_would_pass_the_cap() -> None:
    paid = Run("a", "d", "p", drew=(gaussian(1.8),))
    accounts = PatientAccounts(Participation.empty().place("a", people(0, 2)), {"a": paid})
    new_run = Run("b", "d", "q", holds=(gaussian(1.8),))
    accounts.require(new_run, people(4, 6), [CAP])
    with pytest.raises(BudgetError) as caught:
        accounts.require(new_run, people(2, 4), [CAP])
    assert caught.value.code == "VHT-BUDGET-CAP"
    with pytest.raises(BudgetError):
        accounts.require(new_run, None, [CAP])


def test_a_run_whose_patients_are_not_known_counts_for_everybody() -> None:
    accounts = PatientAccounts(Participation.empty(), {"a": Run("a", "d", "p", drew=(gaussian(1.8),))})
    with pytest.raises(BudgetError):
        accounts.require(Run("b", "d", "p", holds=(gaussian(1.8),)), people(4), [CAP])
    accounts.require(Run("a", "d", "p", holds=(gaussian(1.8),)), people(4), [CAP])  # its own reservation


def test_each_cap_looks_at_the_runs_it_covers() -> None:
    participation = Participation.empty().place("a", people(0))
    accounts = PatientAccounts(participation, {"a": Run("a", "d", "p", drew=(gaussian(2.0),))})
    new_run = Run("b", "d", "q", holds=(gaussian(2.0),))
    accounts.require(new_run, people(0), [Cap("permit", 2.5, 1e-5, permit="q"), Cap("dataset", 2.5, 1e-5, dataset="e")])
    with pytest.raises(BudgetError, match="dataset's cap"):
        accounts.require(new_run, people(0), [Cap("dataset", 2.5, 1e-5, dataset="d")])


def test_test_patients_do_not_pay_for_training() -> None:
    accounts = PatientAccounts(
        Participation.empty().place("a", people(1, 2)), {"a": Run("a", "d", "p", drew=(gaussian(1.6),))}
    )
    accounts.require(Run("b", "d", "p", holds=(gaussian(1.6, "test"),)), people(1, 2), [CAP])
    with pytest.raises(BudgetError):
        accounts.require(Run("b", "d", "p", holds=(gaussian(1.6, "all"),)), people(1, 2), [CAP])


def test_a_first_plan_may_use_its_whole_cap_as_privacy_loss_distributions_count_it() -> None:
    plan = (gaussian(1.395),)
    assert 2.95 < epsilon(plan, 1e-5) <= 3.0
    accounts = PatientAccounts(Participation.empty(), {})
    accounts.require(Run("a", "d", "p", holds=plan), people(1, 2), [CAP])
    begun = PatientAccounts(accounts.participation.place("a", people(2)), {"a": Run("a", "d", "p", drew=plan)})
    with pytest.raises(BudgetError):  # nothing more, however little
        begun.require(Run("b", "d", "p", holds=(gaussian(50.0),)), people(2), [CAP])


def test_an_operator_sees_how_many_patients_remain() -> None:
    participation = Participation.empty().place("a", people(0, 2, 4)).place("b", people(4, 6))
    runs = {
        "a": Run("a", "d", "p", drew=(gaussian(1.6),)),
        "b": Run("b", "d", "p", drew=(gaussian(8.0),)),
    }
    counts = PatientAccounts(participation, runs).remaining(
        CAP, Run("c", "d", "p", holds=(gaussian(2.0),)), untouched=10
    )
    assert (counts.patients, counts.untouched, counts.half, counts.little, counts.able) == (14, 10, 11, 3, 11)
    everywhere = PatientAccounts(Participation.empty(), runs)
    assert everywhere.remaining(CAP, Run("c", "d", "p"), untouched=10).untouched == 0


EVENTS = st.sampled_from([gaussian(3.0), gaussian(6.0), gaussian(4.0, "test"), gaussian(9.0, "all")])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sets(st.integers(0, 9), min_size=1), st.lists(EVENTS, min_size=1, max_size=2)), max_size=9)
)
def test_no_patient_ever_passes_the_cap_by_any_accountant(steps: list[tuple[set[int], list[PrivacyEvent]]]) -> None:
    participation, runs = Participation.empty(), dict[str, Run]()
    paid: dict[int, list[PrivacyEvent]] = {}
    for number, (numbers, events) in enumerate(steps):
        run = Run(f"r{number}", "d", "p", holds=tuple(events))
        try:
            PatientAccounts(participation, runs).require(run, people(*numbers), [CAP])
        except BudgetError:
            continue
        participation = participation.place(run.name, people(*numbers))
        runs[run.name] = Run(run.name, "d", "p", drew=run.holds)
        for subject in numbers:
            paid.setdefault(subject, []).extend(touching(events, "test" if subject % 2 else "train"))
    assert all(epsilon(events, CAP.delta) <= CAP.epsilon + 1e-6 for events in paid.values())


# --- patients of several numbers --------------------------------------------------------------------------------------


def joint(*numbers: int) -> Included:
    """One patient of these numbers."""
    return Included(people(*numbers).subjects, people(*numbers).test, (numbers,))


def test_a_patient_of_several_numbers_has_all_their_runs() -> None:
    before = Participation.empty().place("a", people(0, 2)).place("b", people(2, 4)).place("c", people(6, 8))
    after = before.place("d", joint(0, 4, 10))
    histories = {int(n): set(after.groups[g].runs) for n, g in zip(after.subjects, after.group, strict=True)}
    assert histories == {
        0: {"a", "b", "d"}, 4: {"a", "b", "d"}, 10: {"d"}, 2: {"a", "b"}, 6: {"c"}, 8: {"c"},
    }  # fmt: skip
    assert before.joined([(0,), (6, 8), (12, 14)]) is before
    assert after.joined([(0, 4, 10)]).remove("d").subjects.tolist() == [0, 2, 4, 6, 8, 10]


def test_numbers_on_both_sides_of_the_split_are_not_one_patient() -> None:
    with pytest.raises(BudgetError) as caught:
        Participation.empty().place("a", people(0)).place("b", people(1)).joined([(0, 1)])
    assert caught.value.code == "VHT-BUDGET-PARTICIPATION"


def test_what_was_spent_under_two_numbers_of_a_patient_is_added_up() -> None:
    """The control: of two patients each could pay what one of them cannot."""
    runs = {name: Run(name, "d", None, drew=(gaussian(2.4),)) for name in ("a", "b")}
    participation = Participation.empty().place("a", people(0)).place("b", people(2))
    accounts = PatientAccounts(participation, runs)
    asked = Run("c", "d", None, holds=(gaussian(2.4),))
    accounts.require(asked, people(0, 2), [CAP])
    with pytest.raises(BudgetError) as caught:
        accounts.require(asked, joint(0, 2), [CAP])
    assert caught.value.code == "VHT-BUDGET-CAP"
