"""From recorded uses to the sum of clipped contributions: norms first, weights' gradients after.

Patients are taken in chunks whose own gradients fit ``gradient_bytes``; what a chunk instantiated for its norms is
summed at once, while it is in the cache. Uses with ghost norms are summed at the end over all patients.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vht_federate.privacy.engine.use import Use, squared

__all__ = ["Clipped", "add", "clip_one", "sum_clipped"]

_SLACK_ULPS = 16


class Clipped:
    """``total``: sums by parameter name (absent: zero). ``suspects``: bool [patients], whose norm is not finite in

    this precision; None where there is none. With suspects ``total`` is worthless.
    """

    def __init__(self, total: dict[str, Tensor], suspects: Tensor | None) -> None:
        self.total = total
        self.suspects = suspects


def add(total: dict[str, Tensor], part: Mapping[str, Tensor]) -> None:
    for name, value in part.items():
        total[name] = total[name] + value if name in total else value


@torch.no_grad()
def sum_clipped(uses: Sequence[Use], patients: int, clipping_norm: float, gradient_bytes: int) -> Clipped:
    """Sum over patients of their gradients, each scaled to at most ``clipping_norm`` over all uses together."""
    ghosts, kept = _divided(uses)
    total: dict[str, Tensor] = {}
    factors, suspects = [], []
    for rows in _chunks(kept, patients, gradient_bytes):
        made: dict[str, Tensor] = {}
        for use in kept:
            add(made, use.gradients(rows))
        norms = [use.squared_norms(rows) for use in ghosts] + [squared(value) for value in made.values()]
        norm = torch.stack(norms).sum(0).sqrt() if len(norms) > 1 else norms[0].sqrt()
        factor, finite = _factor(norm, clipping_norm)
        factors.append(factor)
        suspects.append(~finite)
        for name, value in made.items():
            add(total, {name: (factor @ value.flatten(1)).view(value.shape[1:])})
    suspected = torch.cat(suspects) if len(suspects) > 1 else suspects[0]
    if bool(suspected.any()):
        return Clipped({}, suspected)
    everyone = torch.cat(factors) if len(factors) > 1 else factors[0]
    for use in ghosts:
        add(total, use.weighted(everyone))
    return Clipped(total, None)


def clip_one(gradient: Mapping[str, Tensor], clipping_norm: float) -> dict[str, Tensor] | None:
    """One patient's gradient scaled to at most ``clipping_norm``; None where an entry is not finite.

    The norm is taken in float64 after division by the largest entry, so that squares of 1e200 do not overflow.
    """
    if not all(bool(torch.isfinite(value).all()) for value in gradient.values()):
        return None
    largest = max((float(value.abs().max()) for value in gradient.values() if value.numel()), default=0.0)
    if largest == 0.0:
        return {}
    units = {name: value.double() / largest for name, value in gradient.items()}
    relative = float(torch.stack([unit.square().sum() for unit in units.values()]).sum().sqrt())
    if relative <= clipping_norm / largest:
        return dict(gradient)
    dtype = next(iter(gradient.values())).dtype
    scale = clipping_norm * _slack(dtype) / relative
    return {name: (unit * scale).to(gradient[name].dtype) for name, unit in units.items()}


def _slack(dtype: torch.dtype) -> float:
    """A few units in the last place below one, so that rounding does not lift a contribution over its bound."""
    return 1.0 - _SLACK_ULPS * torch.finfo(dtype).eps


def _factor(norm: Tensor, clipping_norm: float) -> tuple[Tensor, Tensor]:
    """min(1, C / norm), and which norms are finite."""
    bound = clipping_norm * _slack(norm.dtype)
    return (bound / norm.clamp_min(bound)), torch.isfinite(norm)


def _divided(uses: Sequence[Use]) -> tuple[list[Use], list[Use]]:
    """Uses with ghost norms and uses to instantiate; a parameter with several uses (tied) needs their sum."""
    seen = [name for use in uses for name in use.parameters]
    ghosts = [use for use in uses if use.ghost() and all(seen.count(name) == 1 for name in use.parameters)]
    return ghosts, [use for use in uses if use not in ghosts]


def _chunks(kept: Sequence[Use], patients: int, gradient_bytes: int) -> list[slice]:
    floats = sum(use.floats() for use in kept)
    at_once = patients if floats == 0 else max(1, gradient_bytes // (8 * floats))
    parts = -(-patients // at_once)
    edges = [patients * part // parts for part in range(parts + 1)]
    return [slice(low, high) for low, high in pairwise(edges)]
