"""Another processor's rounding, played on this one (Monte Carlo arithmetic; Parker 1997).

Processors add in different orders. Here every result of every torch operation is moved by a few units in the last
place, forward and backward. A number that a few such moves change is no property of the model or of a patient: it is
ill-conditioned, and nothing can be promised of it beyond its bound.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SETTLED = 1e-12  # of contributions no longer than about one


class OtherRounding(TorchDispatchMode):
    """``units`` in the last place is what each result may move, at most, either way."""

    def __init__(self, seed: int, units: float) -> None:
        super().__init__()
        self._generator, self._units = torch.Generator().manual_seed(seed), units

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for output, described in zip(
            outputs if isinstance(outputs, tuple | list) else (outputs,), func._schema.returns, strict=False
        ):
            fresh = described.alias_info is None and isinstance(output, Tensor) and output.is_floating_point()
            if fresh and output.numel() and output.device.type == "cpu":
                self.move(output)
        return outputs

    def move(self, value: Tensor) -> None:
        noise = torch.rand(value.shape, generator=self._generator, dtype=torch.float64).to(value.dtype)
        value.mul_(1.0 + (2.0 * noise - 1.0) * self._units * torch.finfo(value.dtype).eps)


def well_conditioned(compute: Callable[[], dict[str, Tensor]]) -> bool:
    """Whether ``compute`` gives the same by three other ways of rounding, to ``SETTLED``."""
    expected = compute()
    for seed in range(3):
        with OtherRounding(seed, 4.0):
            moved = compute()
        if any(not bool(((moved[name] - value).abs() <= SETTLED).all()) for name, value in expected.items()):
            return False
    return True
