"""How much a synthetic cohort is like the training patients it stands for. Reads both: for those who may.

Two questions: how far apart are the one-way marginals (total variation distance), and does a model that was trained on
the synthetic rows judge real test patients as one trained on the real rows does (train on synthetic, test on real)?
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deploy.demo.metrics import auc, mean_over_nodes
from deploy.demo.pooled_training import Learner
from synth.marginals import encode
from vht_federate.components.job import CohortArrays
from vht_federate.packaging.codebook import Codebook, Column, codebook_for

__all__ = ["auc_when_trained_on", "distances", "last_records", "marginals_of", "read_synthetic"]


def last_records(cohort: CohortArrays) -> CohortArrays:
    """One record for each patient who has any, as a synthetic cohort has: the last, with the patient's label."""
    last = cohort.last_records()
    bucket = cohort.bucket[cohort.patient[last]]
    return CohortArrays(cohort.values[last], cohort.labels().astype(np.float32), np.arange(len(last)), bucket)


def read_synthetic(folder: Path, learner: Learner) -> CohortArrays:
    """The rows of a released cohort as tensors of the component that it was made for."""
    book = _book(learner)
    rows = pq.read_table(folder / "data.parquet")
    columns = [_numbers(book.columns[name], rows[name].to_pylist()) for name in book.order]
    values = np.stack(columns[:-1], axis=1).astype(np.float32)
    count = len(values)
    bucket = np.full(count, 99, dtype=np.uint8)  # nobody's test patients
    return CohortArrays(values, columns[-1].astype(np.float32), np.arange(count), bucket)


def auc_when_trained_on(learner: Learner, train: Sequence[CohortArrays], tests: Sequence[CohortArrays]) -> float | None:
    """Mean over ``tests`` of the AUC of the component's model fitted without privacy; one record per patient."""
    weights = learner.fit_pooled([last_records(cohort) for cohort in train])
    return mean_over_nodes(auc, learner.predict(weights, [last_records(cohort) for cohort in tests]))


def marginals_of(learner: Learner, real: Sequence[CohortArrays], synthetic: CohortArrays) -> dict[str, dict[str, Any]]:
    """By variable: its cells, the shares of ``real`` patients and of ``synthetic`` rows in them, and ``tvd``.

    ``tvd`` is half the sum of the shares' absolute differences: 0 for the same distribution, 1 for disjoint ones.
    """
    book = _book(learner)
    codes = np.concatenate([encode(book, cohort) for cohort in real]), encode(book, synthetic)
    marginals = {}
    for index, name in enumerate(book.order):
        column = book.columns[name]
        shares = [_shares(part[:, index], column.cells) for part in codes]
        marginals[name] = {
            "unit": column.unit,
            "edges": list(column.edges),
            "cells": list(column.labels),
            "real": np.round(shares[0], 5).tolist(),
            "synthetic": np.round(shares[1], 5).tolist(),
            "tvd": round(float(np.abs(shares[0] - shares[1]).sum() / 2), 5),
        }
    return marginals


def distances(marginals: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``tvd_mean`` and ``tvd_worst`` over the variables, and which variable is the worst."""
    worst = max(marginals, key=lambda name: marginals[name]["tvd"])
    mean = float(np.mean([marginal["tvd"] for marginal in marginals.values()]))
    return {"tvd_mean": mean, "tvd_worst": marginals[worst]["tvd"], "tvd_worst_variable": worst}


def _book(learner: Learner) -> Codebook:
    return Codebook.read(codebook_for(learner.component, learner.profile))


def _numbers(column: Column, values: Sequence[Any]) -> NDArray[np.float64]:
    """As the connector's view writes them: booleans 0 and 1, categories by index, NaN where missing."""
    levels = {level: float(index) for index, level in enumerate(column.levels)} if column.kind == "category" else {}
    numbers = (value if value is None else levels[value] if levels else float(value) for value in values)
    return np.array([np.nan if value is None else value for value in numbers], dtype=np.float64)


def _shares(cells: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    counted = np.bincount(cells, minlength=count).astype(np.float64)
    share: NDArray[np.float64] = counted / max(1.0, counted.sum())
    return share
