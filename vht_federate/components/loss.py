"""The loss that belongs to an output's kind. Imports torch."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from vht_federate.components.contract import Component
from vht_federate.errors import ComponentError

__all__ = ["loss_of"]

Loss = Callable[[Tensor, Tensor], Tensor]

_LOSSES: dict[str, Loss] = {"probability": binary_cross_entropy_with_logits}


def loss_of(component: Component) -> Loss:
    """Mean loss of logits [n] against outcomes [n]. Raises ComponentError VHT-COMPONENT-OUTPUT."""
    if component.output.kind not in _LOSSES:
        raise ComponentError(f"no loss for outputs of kind {component.output.kind}", code="VHT-COMPONENT-OUTPUT")
    return _LOSSES[component.output.kind]
