"""Models that let one record reach another's output, each in its own hiding place."""

import torch
from torch import Tensor, nn

from kit.models import WIDTH

__all__ = [
    "AtItsOwnWeights",
    "BehindAGate",
    "BehindZeros",
    "BeyondAThreshold",
    "ByTheirNumber",
    "InSinglePrecision",
    "Mixing",
]


class Mixing(nn.Module):
    """A linear model; subclasses let a record see the others, some only at weights that are not these."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.mixed(self.first(values))).mean((1, 2))

    def mixed(self, hidden: Tensor) -> Tensor:
        return hidden - hidden.mean(0, keepdim=True)


class BehindAGate(Mixing):
    """A gate that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.zeros_(self.gate.weight)

    def mixed(self, hidden: Tensor) -> Tensor:
        return hidden + self.gate(hidden.mean(0, keepdim=True).expand_as(hidden).contiguous())


class BehindZeros(Mixing):
    """A head that starts at zero, as heads often do: every output is the same."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)


class BeyondAThreshold(Mixing):
    def mixed(self, hidden: Tensor) -> Tensor:
        return torch.where(hidden.detach().abs().amax() > 100.0, super().mixed(hidden), hidden)


class AtItsOwnWeights(Mixing):
    """Beyond all weights that anybody would try: those it came with."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.first.weight.mul_(1e9)

    def mixed(self, hidden: Tensor) -> Tensor:
        return torch.where(hidden.detach().abs().amax() > 1e7, super().mixed(hidden), hidden)


class ByTheirNumber(Mixing):
    def mixed(self, hidden: Tensor) -> Tensor:
        return hidden / len(hidden)


class InSinglePrecision(Mixing):
    """Holds on to float32, so that no copy can be asked in float64."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values.float())
