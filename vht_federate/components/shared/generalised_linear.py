"""A generalised linear model over publicly scaled ports, with a learned effect for each missing value.

Quantities are clamped to their public clinical bounds and scaled to [-2, 2] (most patients lie in the middle half of
such bounds, so that a quantity varies about as much as a boolean); booleans become -1 or 1, categories one column each;
a missing value becomes 0 and sets an indicator column. No statistic of patients enters the encoding.
Weights start at zero, so that every coordinator and every hospital starts from the same public model.
"""

import torch
from torch import Tensor, nn


class GeneralisedLinear(nn.Module):
    """values [n, inputs] in clinical units, NaN where missing -> logits [n]."""

    def __init__(self, ports) -> None:
        super().__init__()
        self.encoding = Encoding(ports)
        self.linear = nn.Linear(self.encoding.width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, values: Tensor) -> Tensor:
        return self.linear(self.encoding(values)).squeeze(-1)


class Encoding(nn.Module):
    """values [n, inputs] -> features [n, width], of Euclidean norm near 1 and at most 2."""

    def __init__(self, ports) -> None:
        super().__init__()
        low, high, reach, columns, codes, self.names = [], [], [], [], [], []
        for column, port in enumerate(ports):
            if port.kind == "category":
                low.append(0.0)
                high.append(1.0)
                reach.append(0.0)
                columns += [column] * len(port.categories)
                codes += range(len(port.categories))
                self.names += [f"{port.name}={category}" for category in port.categories]
            else:
                bounds = port.bounds if port.kind == "quantity" else (0.0, 1.0)
                low.append(float(bounds[0]))
                high.append(float(bounds[1]))
                reach.append(2.0 if port.kind == "quantity" else 1.0)
        scaled = [column for column, port in enumerate(ports) if port.kind != "category"]
        self.names += [ports[column].name for column in scaled]
        self.names += [f"{port.name} missing" for port in ports]
        self.scale = 1.0 / len(ports) ** 0.5
        self.width = len(self.names)
        for name, value in (("low", low), ("high", high), ("reach", reach), ("codes", codes)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)
        for name, value in (("columns", columns), ("scaled", scaled)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.int64), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        missing = torch.isnan(values)
        known = torch.where(missing, self.low, values)
        within = torch.minimum(torch.maximum(known, self.low), self.high)
        centred = self.reach * (2.0 * (within - self.low) / (self.high - self.low) - 1.0)
        centred = torch.where(missing, torch.zeros_like(centred), centred)
        one_hot = (torch.round(known[:, self.columns]) == self.codes) & ~missing[:, self.columns]
        parts = [one_hot.to(values.dtype), centred[:, self.scaled], missing.to(values.dtype)]
        return self.scale * torch.cat(parts, dim=1)


def build(component, profile: str) -> nn.Module:
    """The model of ``profile``, with weights at zero."""
    return GeneralisedLinear(component.inputs(profile))
