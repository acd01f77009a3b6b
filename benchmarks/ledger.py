"""A hospital of a million patients, two hundred runs, a thousand histories: may this run reserve, how many remain?

The warm answer is one ``require`` and one ``remaining`` for each of three caps, of a run with its own noise, on
accounts that are loaded and known; its floor is one numpy pass over the patients' groups and one over the run's
patients. The cold answer also reads the accounts for the first time. Medians of processor time.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.table import Row
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.privacy.accounting import epsilon
from vht_federate.privacy.accounts import Cap, PatientAccounts, Run
from vht_federate.privacy.participation import Group, Included, Participation

__all__ = ["measure"]

PATIENTS, RUNS, HISTORIES = 1_000_000, 200, 1_000
ROUNDS = 9


def _run(number: int, *, drew: bool = True) -> Run:
    """A training and a count, each run with noise of its own."""
    step = PrivacyEvent(
        label="train", population="train", noise_multiplier=20.0 + 0.1 * number, sampling_rate=0.1, steps=60
    )
    count = PrivacyEvent(label="count", population="all", noise_multiplier=80.0 + number)
    spent = {"drew" if drew else "holds": (step, count)}
    return Run(f"v-{number}", "dataset", f"permit-{number % 20}", **spent)


def _hospital(rng: np.random.Generator) -> PatientAccounts:
    """Every patient in one of the histories; each history has 1 to 60 of the runs."""
    names = [f"v-{number}" for number in range(RUNS)]
    groups: list[Group] = []
    seen: set[Group] = set()
    while len(groups) < HISTORIES:
        chosen = tuple(names[number] for number in sorted(rng.choice(RUNS, rng.integers(1, 61), replace=False)))
        group = Group("test" if len(groups) % 3 == 0 else "train", chosen)
        if group not in seen:
            seen.add(group)
            groups.append(group)
    subjects = np.sort(rng.integers(0, 2**63, PATIENTS, dtype=np.uint64))
    subjects = np.unique(subjects)
    group_of = rng.integers(0, HISTORIES, len(subjects)).astype(np.int32)
    runs = {name: _run(number) for number, name in enumerate(names)}
    return PatientAccounts(Participation(subjects, group_of, tuple(groups)), runs)


def _included(participation: Participation, rng: np.random.Generator) -> Included:
    """Half of the known patients, and a few thousand new ones."""
    chosen = rng.random(len(participation)) < 0.5
    test = np.array([group.population == "test" for group in participation.groups])[participation.group]
    new = np.setdiff1d(rng.integers(0, 2**63, 5_000, dtype=np.uint64), participation.subjects)
    subjects = np.concatenate([participation.subjects[chosen], new])
    order = np.argsort(subjects, kind="stable")
    return Included(subjects[order], np.concatenate([test[chosen], np.zeros(len(new), dtype=bool)])[order])


def _answer(accounts: PatientAccounts, run: Run, included: Included, caps: list[Cap]) -> int:
    accounts.require(run, included, caps)
    return sum(accounts.remaining(cap, run).able for cap in caps)


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure() -> list[Row]:
    rng = np.random.default_rng(5)
    accounts = _hospital(rng)
    included = _included(accounts.participation, rng)
    caps = [
        Cap("patient", 8.0, 1e-5),
        Cap("dataset", 8.0, 1e-5, dataset="dataset"),
        Cap("permit", 4.0, 1e-5, permit="permit-7"),
    ]
    cold = _seconds(lambda: _answer(accounts, _run(RUNS, drew=False), included, caps))
    asking = [_run(RUNS + number, drew=False) for number in range(1, 1 + ROUNDS)]
    warm = [_seconds(partial(_answer, accounts, run, included, caps)) for run in asking]
    group_of, marks = accounts.participation.group, np.zeros(2**16, dtype=np.int64)
    floors = [
        _seconds(lambda: (np.bincount(group_of, minlength=HISTORIES), marks[included.subjects & 0xFFFF].sum()))
        for _ in range(ROUNDS)
    ]
    place = [_seconds(lambda: accounts.participation.place("v-new", included)) for _ in range(3)]
    answer, floor = statistics.median(warm), statistics.median(floors)
    events = [event for run in list(accounts.runs.values())[:8] for event in run.drew]
    exact = _seconds(lambda: epsilon(events, 1e-5))
    return [
        Row("warm_answer_s", answer, "s", "<= 1", answer <= 1.0, "one numpy pass over both", floor),
        Row("first_answer_s", cold, "s", "<= 2", cold <= 2.0),
        Row("place_s", statistics.median(place), "s", "<= 1", statistics.median(place) <= 1.0),
        Row("answer_vs_exact_by_history", answer, "s", "ratio <= 0.1", answer <= 0.1 * exact * HISTORIES,
            "a thousand PLD accounts of 8 runs", exact * HISTORIES),
    ]  # fmt: skip
