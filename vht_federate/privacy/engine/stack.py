"""A plain stack of linear layers and activations: forward and backward written out.

The commonest model on tables is also the quickest to compute, so that the tape and autograd would be a fifth of its
step. The result is the same; anything unusual (hooks, shared layers, other types) is left to the tape.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vht_federate.privacy.engine.clipping import Clipped, clip_factors, sum_clipped
from vht_federate.privacy.engine.grouping import Patients
from vht_federate.privacy.engine.layers.linear import LinearUse
from vht_federate.privacy.engine.loss import Loss, output_gradients
from vht_federate.privacy.engine.parameter_use import norm, product_norm

__all__ = ["Stack"]

Trail = list[tuple[nn.Module, Tensor]]
Part = tuple[tuple[str | None, str | None], torch.Size, Tensor, Tensor]  # names, weight's shape, input, gradient
# (gradient of the output, which may be used up, and output) -> gradient of the input
Backward = Callable[[Tensor, Tensor], Tensor]

_ACTIVATIONS: dict[type[nn.Module], Backward] = {
    nn.ReLU: lambda gradient, output: torch.ops.aten.threshold_backward.grad_input(
        gradient, output, 0, grad_input=gradient
    ),
    nn.Tanh: lambda gradient, output: torch.ops.aten.tanh_backward(gradient, output),
    nn.Sigmoid: lambda gradient, output: torch.ops.aten.sigmoid_backward(gradient, output),
}
_SHAPES = (nn.Flatten, nn.Identity)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Stack:
    def __init__(self, layers: list[nn.Module]) -> None:
        self._layers = layers
        self._first = next(layer for layer in layers if isinstance(layer, nn.Linear))

    @classmethod
    def of(cls, model: nn.Module) -> "Stack | None":
        """The stack that ``model`` is, or None: exact types only, each layer used once, no hook anywhere."""
        layers = list(_flat(model))
        known = all(type(layer) in (nn.Linear, *_ACTIVATIONS, *_SHAPES) for layer in layers)
        once = len({id(value) for layer in layers for value in layer.parameters()}) == sum(
            len(list(layer.parameters())) for layer in layers
        )
        hooked = any(getattr(module, kind) for module in model.modules() for kind in _HOOKS)
        linear = any(type(layer) is nn.Linear for layer in layers)
        return cls(layers) if known and once and linear and not hooked else None

    def clipped(
        self,
        loss: Loss,
        names: dict[int, str],
        inputs: Tensor,
        targets: Tensor,
        batch: Patients,
        clipping_norm: float | Tensor,
        gradient_bytes: int,
    ) -> Clipped | None:
        """The sum over the micro-batch's patients; None where a linear layer sees more than [N, in].

        ``names``: parameter names by ``id``, of those trained.
        """
        with torch.no_grad():
            outputs, trail = self._forward(inputs)
        if outputs is None:
            return None
        seeds = output_gradients(loss, outputs, targets, batch.share(inputs.device))
        with torch.no_grad():
            parts = list(self._backward(names, trail, seeds))
            del trail
            if batch.single:
                return _single_records(parts, clipping_norm)
            return sum_clipped(_uses(parts), batch, clipping_norm, gradient_bytes)

    def _forward(self, values: Tensor) -> tuple[Tensor | None, Trail]:
        """The output, and each layer with what its gradient needs: a linear layer's input, the others' output."""
        trail: Trail = []
        for layer in self._layers:
            if isinstance(layer, nn.Linear):
                if values.dim() != 2:
                    return None, []
                trail.append((layer, values))
                values = F.linear(values, layer.weight, layer.bias)
            elif isinstance(layer, _SHAPES):
                trail.append((layer, values))
                values = layer(values)
            else:
                fresh = bool(trail) and isinstance(trail[-1][0], nn.Linear)  # nobody else holds this tensor
                if isinstance(layer, nn.ReLU):
                    values = torch.relu_(values) if fresh else torch.relu(values)
                else:
                    values = layer(values)
                trail.append((layer, values))
        return values, trail

    def _backward(self, names: dict[int, str], trail: Trail, gradient: Tensor) -> Iterator[Part]:
        """Each trained linear layer, last one first, with its input and the gradient of its output."""
        for layer, saved in reversed(trail):
            if isinstance(layer, nn.Linear):
                trained = names.get(id(layer.weight)), names.get(id(layer.bias))
                if any(trained):
                    yield trained, layer.weight.shape, saved, gradient
                if layer is self._first:
                    return
                gradient = gradient @ layer.weight
            elif isinstance(layer, _SHAPES):
                gradient = gradient.view(saved.shape)
            else:
                gradient = _ACTIVATIONS[type(layer)](gradient, saved)


def _single_records(parts: list[Part], clipping_norm: float | Tensor) -> Clipped:
    """With one record a patient, the norm of a layer's gradient is the product of two norms."""
    norms = []
    for (weight, bias), _, inputs, gradient in parts:
        after = norm(gradient)
        if weight:
            norms.append(product_norm(inputs, after, gradient.shape[1]))
        if bias:
            norms.append(after)
    factor, finite = clip_factors(norms, clipping_norm)
    total = {}
    for (weight, bias), _, inputs, gradient in parts:
        if bias:
            total[bias] = factor @ gradient
        if weight:
            total[weight] = gradient.mul_(factor[:, None]).T @ inputs
    return Clipped(total, finite, factor)


def _uses(parts: list[Part]) -> list[LinearUse]:
    uses = []
    for names, shape, inputs, gradient in parts:
        use = LinearUse(inputs, names, shape, inputs)
        use.bind(gradient)
        uses.append(use)
    return uses


def _flat(model: nn.Module) -> Iterator[nn.Module]:
    if type(model) is nn.Sequential:
        for child in model:
            yield from _flat(child)
    else:
        yield model
