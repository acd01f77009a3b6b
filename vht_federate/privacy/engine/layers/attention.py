"""Multi-head attention (Vaswani et al. 2017) as linear layers around ``scaled_dot_product_attention``.

torch's own function runs its last projection on [T * N, width], where the records are no longer a dimension.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vht_federate.privacy.engine.refusal import Unsupported
from vht_federate.privacy.engine.tape import Tape

__all__ = ["multi_head_attention"]

Linear = Callable[..., Tensor]


def multi_head_attention(tape: Tape, call: dict[str, Any], linear: Linear) -> tuple[Tensor, Tensor | None]:
    """``F.multi_head_attention_forward`` with the same arguments, [T, N, width] in and out.

    Raises Unsupported for added bias rows, static keys and inputs without a batch dimension.
    """
    for name in ("bias_k", "bias_v", "static_k", "static_v"):
        if call[name] is not None:
            raise Unsupported(f"attention with {name}")
    if call["add_zero_attn"] or call["query"].dim() != 3:
        raise Unsupported("attention with a zero key or without a batch")
    if tape.name_of(call["in_proj_weight"]) is None and not call["use_separate_proj_weight"]:
        raise Unsupported("attention whose projections are not trained")
    query, key, value = _projections(tape, call, linear)
    heads = call["num_heads"]
    records, length, width = query.shape
    query, key, value = (part.view(records, -1, heads, width // heads).transpose(1, 2) for part in (query, key, value))
    mask = _mask(call, records, heads, query.dtype)
    dropout = call["dropout_p"] if call["training"] else 0.0
    weights = None
    if call["need_weights"]:
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, dropout) if dropout else weights
        mixed = weights @ value
        weights = weights.mean(1) if call["average_attn_weights"] else weights
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    mixed = mixed.transpose(1, 2).reshape(records, length, width)
    return linear(tape, mixed, call["out_proj_weight"], call["out_proj_bias"]).transpose(0, 1), weights


def _projections(tape: Tape, call: dict[str, Any], linear: Linear) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [N, T, width] by their blocks of the packed parameters, or by weights of their own."""
    parts = (call["query"], call["key"], call["value"])
    query, key, value = parts
    bias, width = call["in_proj_bias"], query.shape[-1]
    separate = call["use_separate_proj_weight"]
    if not separate and query is key and key is value:
        first, second, third = linear(tape, query.transpose(0, 1), call["in_proj_weight"], bias).chunk(3, dim=-1)
        return first, second, third
    if separate and bias is not None:
        raise Unsupported("separate projections with a packed bias")
    own = (call["q_proj_weight"], call["k_proj_weight"], call["v_proj_weight"])
    projected = []
    for at, part in enumerate(parts):
        inputs = part.transpose(0, 1)
        rows = slice(at * width, (at + 1) * width)
        projected.append(
            linear(tape, inputs, own[at]) if separate else linear(tape, inputs, call["in_proj_weight"], bias, rows)
        )
    return projected[0], projected[1], projected[2]


def _mask(call: dict[str, Any], records: int, heads: int, dtype: torch.dtype) -> Tensor | None:
    """Both masks as one to add, broadcastable to [N, heads, T, S]."""
    total: Tensor | None = None
    for mask, shape in (
        (call["attn_mask"], None),
        (call["key_padding_mask"], (records, 1, 1, -1)),
    ):
        if mask is None:
            continue
        added = torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask
        if shape is not None:
            added = added.view(shape)
        elif added.dim() == 3:
            added = added.view(records, heads, *added.shape[1:])
        total = added if total is None else total + added
    return total
