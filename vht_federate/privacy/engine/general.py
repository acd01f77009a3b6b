"""Any model whose records do not share state, by ``torch.func``: slower, and exact."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vht_federate.errors import ComponentError
from vht_federate.privacy.clipped_count import Tally
from vht_federate.privacy.engine.loss import Loss
from vht_federate.privacy.gradients import clipped_sum

__all__ = ["general_sum", "runs_in_general"]


class _ByIndex(nn.Module):
    """``model`` as a function of a record's number: the general engine takes one input, models take several."""

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.model = model
        self._inputs = tuple(inputs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Trained ones alone: a frozen parameter has no share in a contribution's norm."""
        return ((name, value) for name, value in super().named_parameters(*args, **kwargs) if value.requires_grad)

    def forward(self, index: Tensor) -> Tensor:
        output: Tensor = self.model(*(value[index] for value in self._inputs))
        return output


def runs_in_general(model: nn.Module, loss: Loss, made_up: Sequence[Tensor], targets: Tensor) -> bool:
    """Whether ``torch.func`` follows the model and the loss.

    Asked with ``made_up`` inputs, and targets of the shape and type of ``targets``.
    """
    count = len(made_up[0])
    try:
        general_sum(model, loss, made_up, targets.new_zeros((count, *targets.shape[1:])), torch.arange(count), 1.0)
    except (ComponentError, torch.OutOfMemoryError):
        raise
    except Exception:  # it can say no in many ways: no rule for an operation, a look at a number, a change in place
        return False
    return True


def general_sum(
    model: nn.Module,
    loss: Loss,
    inputs: Sequence[Tensor],
    targets: Tensor,
    patient: Tensor,
    clipping_norm: float,
    tally: Tally | None = None,
) -> dict[str, Tensor]:
    """Sum over patients of clipped contributions, in the parameters' type."""
    index = torch.arange(len(targets), device=targets.device)
    total = clipped_sum(_ByIndex(model, inputs), loss, index, targets, patient.to(targets.device), clipping_norm, tally)
    kinds = dict(model.named_parameters())
    return {
        name: value.to(kinds[name].dtype)
        for name, value in ((prefixed.removeprefix("model."), value) for prefixed, value in total.items())
    }
