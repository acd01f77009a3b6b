"""What a single column would have said: the check that a study does not learn a trait of its own design.

Where records of cases and of controls are made on different days, or measured at different rates, age or the bare
number of measurements may tell them apart without any medicine. These figures stand beside a study's AUC so that
anybody can see it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.demo.metrics import Scored, auc, mean_over_nodes
from vht_federate.components.contract import Port
from vht_federate.components.job import CohortArrays

__all__ = ["trivial_baselines"]

Scores = NDArray[Any]


def trivial_baselines(
    train: Sequence[CohortArrays], test: Sequence[CohortArrays], ports: Sequence[Port]
) -> Mapping[str, Any]:
    """``single_input``: the input that ranks all training patients best by itself, with its AUC on the test patients.

    ``auc_missing_count``: AUC on the test patients of how many inputs are missing. Each is the mean over the hospitals'
    test sets, in the direction that the training patients have; categories, which have no order, are left out. None
    where an AUC is not defined.
    """
    values = np.concatenate([cohort.values for cohort in train])
    outcome = np.concatenate([cohort.outcome for cohort in train])
    middles = [_middle(values[:, index]) for index in range(len(ports))]
    ordered = [index for index, port in enumerate(ports) if port.kind != "category"]
    ranked = {index: auc(_filled(values, index, middles[index]), outcome) for index in ordered}
    best = max(ranked, key=lambda index: abs(np.nan_to_num(ranked[index], nan=0.5) - 0.5))
    alone = [(_filled(cohort.values, best, middles[best]), cohort.outcome) for cohort in test]
    missing = [(_missing(cohort.values), cohort.outcome) for cohort in test]
    return {
        "single_input": ports[best].name,
        "auc_single_input": mean_over_nodes(auc, _directed(alone, ranked[best])),
        "auc_missing_count": mean_over_nodes(auc, _directed(missing, auc(_missing(values), outcome))),
    }


def _middle(column: Scores) -> float:
    """The median of what is known; 0 where nothing is."""
    known = column[~np.isnan(column)]
    return float(np.median(known)) if len(known) else 0.0


def _filled(values: Scores, index: int, middle: float) -> Scores:
    """The column with the training median where it is missing: neither high nor low."""
    return np.where(np.isnan(values[:, index]), middle, values[:, index]).astype(np.float64)


def _missing(values: Scores) -> Scores:
    count: Scores = np.isnan(values).sum(axis=1).astype(np.float64)
    return count


def _directed(scored: Sequence[Scored], training: float) -> list[Scored]:
    """With the sign by which the training patients' AUC, ``training``, is at least one half."""
    sign = -1.0 if training < 0.5 else 1.0
    return [(sign * score, label) for score, label in scored]
