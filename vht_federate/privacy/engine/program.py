"""A clipped sum whose shapes and addresses never change: recorded once as a CUDA graph, then replayed.

Small models spend a GPU's step on launching kernels one by one; a graph launches them all at once. Inputs are copied
into tensors that stay where they are, and so do the results. Without a GPU the same computation just runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vht_federate.privacy.engine.clipping import Clipped
from vht_federate.privacy.engine.slots import Laid, SlotBatch, Slots

__all__ = ["Program", "SlotSum"]

_WARM_UP = 3  # runs before recording, as torch.cuda.graph asks for
# (clipping norm, inputs, targets, batch) -> the clipped sum, without looking at a number
Clip = Callable[[Tensor, Sequence[Tensor], Tensor, SlotBatch], Clipped]


@dataclass(frozen=True, repr=False)
class SlotSum:
    """``total`` by parameter name; whether every norm was ``finite``, without which it is worthless; how many were."""

    total: dict[str, Tensor]
    finite: bool
    within: int
    seen: int


class Program:
    """``inputs`` and ``targets``: all records of all patients and one of zeros at the end, which stay in place."""

    def __init__(
        self,
        clip: Clip,
        parameters: dict[str, nn.Parameter],
        inputs: Sequence[Tensor],
        targets: Tensor,
        slots: Slots,
        graphs: bool,
    ) -> None:
        self.slots = slots
        self._clip = clip
        self._parameters = parameters
        self._inputs, self._targets = tuple(inputs), targets
        device, rows_held = targets.device, slots.patients * slots.each
        dtype = next(iter(parameters.values())).dtype
        self._rows = torch.full((rows_held,), len(targets) - 1, dtype=torch.int64, device=device)
        self._share = torch.zeros(rows_held, dtype=torch.float64, device=device)
        self._norm = torch.ones((), dtype=dtype, device=device)
        self._graph = self._recorded() if graphs and device.type == "cuda" else None

    def fits(self, inputs: Sequence[Tensor], targets: Tensor, slots: Slots) -> bool:
        """Whether this is the program for these very tensors."""
        same = all(own is given for own, given in zip((*self._inputs, self._targets), (*inputs, targets), strict=True))
        return same and slots == self.slots

    def run(self, laid: Laid, clipping_norm: float) -> SlotSum:
        """The sum over all turns of ``laid``."""
        self._norm.fill_(clipping_norm)
        turns = [self._turn(rows, share) for rows, share in zip(laid.rows, laid.share, strict=True)]
        flat, counts = (torch.stack(part).sum(0) for part in zip(*turns, strict=True))
        broken, within, seen = counts.tolist()
        parts = flat.split_with_sizes([value.numel() for value in self._parameters.values()])
        shaped = zip(self._parameters.items(), parts, strict=True)
        return SlotSum({name: part.view(value.shape) for (name, value), part in shaped}, not broken, within, seen)

    def _turn(self, rows: NDArray[np.int64], share: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        self._rows.copy_(torch.from_numpy(rows))
        self._share.copy_(torch.from_numpy(share))
        if self._graph is None:
            return self._compute()
        self._graph.replay()
        return self._flat.clone(), self._reported.clone()

    def _compute(self) -> tuple[Tensor, Tensor]:
        """The sum [floats], and int64 [norms that are not finite, contributions within the norm, patients seen]."""
        batch = SlotBatch(self.slots.patients, self.slots.each, self._share)
        inputs = [value.index_select(0, self._rows) for value in self._inputs]
        clipped = self._clip(self._norm, inputs, self._targets.index_select(0, self._rows), batch)
        zero = self._norm.new_zeros(())
        flat = torch.cat(
            [
                clipped.total[name].to(value.dtype).reshape(-1) if name in clipped.total else zero.expand(value.numel())
                for name, value in self._parameters.items()
            ]
        )
        taken = batch.taken
        masks = [~clipped.finite, clipped.within & taken, taken]
        return flat, torch.stack([mask.sum() for mask in masks])

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """Nobody's records: every slot is empty while recording."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._flat, self._reported = self._compute()
        return graph
