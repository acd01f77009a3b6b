"""What a single column would have said: the check that a study does not learn a trait of its own design.

Where records of cases and of controls are made on different days, or measured at different rates, age or the bare
number of measurements may tell them apart without any medicine. These figures stand beside a study's AUC so that
anybody can see it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.ranking import auc
from vht_federate.components.contract import Port
from vht_federate.components.job import CohortArrays

__all__ = ["giveaways"]

Scores = NDArray[np.float64]


def giveaways(train: Sequence[CohortArrays], test: Sequence[CohortArrays], ports: Sequence[Port]) -> Mapping[str, Any]:
    """``single_input``: the input that ranks training patients best by itself, with its AUC on the test patients.

    ``auc_missing_count``: AUC on the test patients of how many inputs are missing. Each in the direction that the
    training patients have; categories, which have no order, are left out. None where an AUC is not defined.
    """
    seen, held = _joined(train), _joined(test)
    ordered = [(index, port.name) for index, port in enumerate(ports) if port.kind != "category"]
    found = {name: (auc(_filled(seen, index, seen), seen[1]), index) for index, name in ordered}
    name = max(found, key=lambda one: abs(np.nan_to_num(found[one][0], nan=0.5) - 0.5))
    ranked, index = found[name]
    missing = [np.isnan(values).sum(axis=1).astype(np.float64) for values, _ in (seen, held)]
    return {
        "single_input": name,
        "auc_single_input": _directed(auc(_filled(held, index, seen), held[1]), ranked),
        "auc_missing_count": _directed(auc(missing[1], held[1]), auc(missing[0], seen[1])),
    }


def _joined(cohorts: Sequence[CohortArrays]) -> tuple[NDArray[Any], NDArray[Any]]:
    return np.concatenate([one.values for one in cohorts]), np.concatenate([one.outcome for one in cohorts])


def _filled(part: tuple[NDArray[Any], NDArray[Any]], index: int, seen: tuple[NDArray[Any], NDArray[Any]]) -> Scores:
    """The column with the training median where it is missing: neither high nor low."""
    known = seen[0][:, index][~np.isnan(seen[0][:, index])]
    middle = float(np.median(known)) if len(known) else 0.0
    return np.where(np.isnan(part[0][:, index]), middle, part[0][:, index]).astype(np.float64)


def _directed(figure: float, training: float) -> float | None:
    if not np.isfinite(figure):
        return None
    return 1.0 - figure if training < 0.5 else figure
