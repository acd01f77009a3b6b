"""Records of whole patients, and each patient's on their own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from vht_federate.privacy.engine.grouping import Order

__all__ = ["PatientRecords"]


@dataclass(frozen=True, repr=False)
class PatientRecords:
    """``order``: which patient each row is of, non-decreasing."""

    inputs: Sequence[Tensor]
    targets: Tensor
    order: Order

    def apart(self) -> Iterator["PatientRecords"]:
        """Each patient's on its own."""
        first = [0, *(np.flatnonzero(np.diff(self.order)) + 1), len(self.order)]
        for low, high in pairwise(first):
            own = slice(low, high)
            yield PatientRecords([value[own] for value in self.inputs], self.targets[own], self.order[own])
