"""Which torch functions the tape understands, and what it records for each."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vht_federate.privacy.engine.layers.attention import multi_head_attention
from vht_federate.privacy.engine.layers.convolution import ConvolutionUse, Geometry
from vht_federate.privacy.engine.layers.embedding import EmbeddingUse
from vht_federate.privacy.engine.layers.linear import BlockUse, LinearUse
from vht_federate.privacy.engine.layers.norm import NormUse
from vht_federate.privacy.engine.layers.stacked import gru, lstm
from vht_federate.privacy.engine.refusal import Unsupported, refusal
from vht_federate.privacy.engine.tape import Handler, Tape

__all__ = ["HANDLERS", "linear"]

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


def linear(tape: Tape, inputs: Tensor, weight: Tensor, bias: Tensor | None = None, rows: slice | None = None) -> Tensor:
    """``F.linear``, recorded; with ``rows``, by that block of the weight's and bias' rows."""
    names = tape.names(weight, bias)
    used = (weight, bias) if rows is None else (weight[rows], None if bias is None else bias[rows])
    output = F.linear(inputs, *used)
    if any(names):
        tape.check_records(inputs)
        edge = tape.edge(output)
        if rows is None:
            tape.uses.append(LinearUse(inputs, names, weight.shape, edge))
        else:
            tape.uses.append(BlockUse(rows, inputs, names, weight.shape, edge))
    return output


def _convolution(function: Callable[..., Tensor]) -> Handler:
    def handle(tape: Tape, args: Arguments, kwargs: Keywords) -> Tensor:
        inputs, weight, bias, stride, padding, dilation, groups = _convolution_arguments(*args, **kwargs)
        output = function(inputs, weight, bias, stride, padding, dilation, groups)
        names = tape.names(weight, bias)
        if any(names):
            tape.check_records(inputs)
            if inputs.dim() != weight.dim():
                raise Unsupported("a convolution without a batch dimension")
            geometry = Geometry(weight.shape[2:], stride, padding, dilation, groups)
            use = ConvolutionUse(inputs, names, weight.shape, geometry, tape.edge(output), output.numel())
            tape.uses.append(use)
        return output

    return handle


def _convolution_arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Any, Any, Any, int]:
    return input, weight, bias, stride, padding, dilation, groups


def _linear(tape: Tape, args: Arguments, kwargs: Keywords) -> Tensor:
    return linear(tape, *args, **{"inputs" if name == "input" else name: value for name, value in kwargs.items()})


_signature = cache(inspect.signature)


def _bound(function: Callable[..., Any], args: Arguments, kwargs: Keywords) -> Keywords:
    bound = _signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _embedding(tape: Tape, args: Arguments, kwargs: Keywords) -> Tensor:
    output: Tensor = F.embedding(*args, **kwargs)
    call = _bound(F.embedding, args, kwargs)
    name = tape.name_of(call["weight"])
    if name:
        if call["max_norm"] is not None or call["scale_grad_by_freq"]:
            raise Unsupported("an embedding whose gradient depends on the whole batch")
        if call["input"].shape[:1] != (tape.records,):
            raise Unsupported("records do not lie where the engine expects them")
        shape = call["weight"].shape
        tape.uses.append(EmbeddingUse(call["input"], name, shape, call["padding_idx"], tape.edge(output)))
    return output


def _norm(function: Callable[..., Tensor], channels_last: bool) -> Handler:
    def handle(tape: Tape, args: Arguments, kwargs: Keywords) -> Tensor:
        call = _bound(function, args, kwargs)
        inputs, weight, bias = call["input"], call.get("weight"), call.get("bias")
        names = tape.names(weight, bias)
        if not any(names):
            return function(*args, **kwargs)
        tape.check_records(inputs)
        bare: Keywords = {name: None if name in ("weight", "bias") else value for name, value in call.items()}
        normal = function(**bare)
        shape = tuple(call["normalized_shape"]) if channels_last else (inputs.shape[1],)
        spread = shape if channels_last else (*shape, *[1] * (inputs.dim() - 2))
        output = normal if weight is None else normal * weight.view(spread)
        output = output if bias is None else output + bias.view(spread)
        tape.uses.append(NormUse(normal, shape, names, channels_last, tape.edge(output)))
        return output

    return handle


def _batch_norm(tape: Tape, args: Arguments, kwargs: Keywords) -> Tensor:
    call = _bound(F.batch_norm, args, kwargs)
    if call["training"]:
        raise refusal("batch normalisation in the forward pass", "use GroupNorm or LayerNorm")
    if any(tape.names(call["weight"], call["bias"])):
        raise Unsupported("parameters reach batch_norm")
    return F.batch_norm(*args, **kwargs)


def _attention(tape: Tape, args: Arguments, kwargs: Keywords) -> tuple[Tensor, Tensor | None]:
    return multi_head_attention(tape, _bound(F.multi_head_attention_forward, args, kwargs), linear)


HANDLERS: dict[Callable[..., Any], Handler] = {
    F.linear: _linear,
    torch.conv1d: _convolution(torch.conv1d),
    torch.conv2d: _convolution(torch.conv2d),
    F.embedding: _embedding,
    F.layer_norm: _norm(F.layer_norm, channels_last=True),
    F.rms_norm: _norm(F.rms_norm, channels_last=True),
    F.group_norm: _norm(F.group_norm, channels_last=False),
    F.batch_norm: _batch_norm,
    F.multi_head_attention_forward: _attention,
    torch.gru: gru,
    torch.lstm: lstm,
}
