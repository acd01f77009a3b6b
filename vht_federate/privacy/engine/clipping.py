"""From recorded uses to the sum of clipped contributions: norms first, weights' gradients after.

Patients are taken in chunks whose own gradients fit ``gradient_bytes``; what a chunk instantiated for its norms is
summed at once, while it is in the cache. Uses with ghost norms are summed at the end over all patients.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vht_federate.privacy.clipped_count import Tally
from vht_federate.privacy.engine.grouping import Group, Patients
from vht_federate.privacy.engine.parameter_use import Use, norm

__all__ = ["Clipped", "add", "clip_factors", "clip_one", "sum_clipped"]

_SLACK_ULPS = 16
_ROWS_AT_ONCE = 4096  # records whose ghost norms are taken together, where patients have several


class Clipped:
    """``total``: sums by parameter name (absent: zero), worthless unless all are ``finite``.

    ``finite`` bool [patients]: whose norm is finite in this precision. ``factors`` [patients]: what each contribution
    was multiplied with, 1 exactly for those within the norm. Nothing here has looked at a number yet.
    """

    def __init__(self, total: dict[str, Tensor], finite: Tensor, factors: Tensor) -> None:
        self.total = total
        self.finite = finite
        self.factors = factors

    @classmethod
    def nothing(cls, like: Tensor, patients: int) -> "Clipped":
        """Where the loss depends on no parameter."""
        return cls({}, like.new_ones(patients, dtype=torch.bool), like.new_ones(patients))

    @property
    def within(self) -> Tensor:
        """Whose contribution is not longer than the norm, bool [patients]."""
        return self.factors == 1


def add(total: dict[str, Tensor], part: Mapping[str, Tensor]) -> None:
    for name, value in part.items():
        total[name] = total[name] + value if name in total else value


@torch.no_grad()
def sum_clipped(uses: Sequence[Use], batch: Patients, clipping_norm: float | Tensor, gradient_bytes: int) -> Clipped:
    """Sum over patients of their gradients, each scaled to at most ``clipping_norm`` over all uses together."""
    like = uses[0].like()
    groups = batch.groups(like.device)
    ghosts, instantiated, tied = _divided(uses, groups)
    book = _Book(instantiated, tied, gradient_bytes)
    factors = like.new_empty(batch.patients)
    finite = torch.empty(batch.patients, dtype=torch.bool, device=like.device)
    for group in groups:
        for chunk in group.chunks(book.patients_at_once(group)):
            norms = [part for use in ghosts for part in use.norms(chunk)] + book.norms(chunk)
            factor, known = clip_factors(norms, clipping_norm)
            book.add(factor)
            factors[chunk.members] = factor
            finite[chunk.members] = known
    total = book.total()
    if ghosts:
        of_records = batch.by_record(factors)
        for use in ghosts:
            add(total, use.weighted(of_records))
    return Clipped(total, finite, factors)


def clip_factors(norms: Sequence[Tensor], clipping_norm: float | Tensor) -> tuple[Tensor, Tensor]:
    """min(1, C / norm) and whether the norm is finite, [patients] each; ``norms``: of orthogonal parts."""
    length = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(list(norms)), dim=0)
    bound = clipping_norm * _slack(length.dtype)
    return (bound * length.reciprocal()).clamp_max(1.0), torch.isfinite(length)


class _Book:
    """The gradients of one chunk of patients side by side in one buffer, and their weighted sum so far.

    Squares of a tied parameter's uses do not add up, so their gradients are summed in shape for the norm.
    """

    def __init__(self, uses: Sequence[Use], tied: frozenset[str], gradient_bytes: int) -> None:
        self._kept, self._tied, self._bytes = uses, tied, gradient_bytes
        self._widths = [use.floats() for use in uses]
        if uses:
            self._buffer = uses[0].like().new_empty((0, sum(self._widths)))
            self._sum = self._buffer.new_zeros(sum(self._widths))

    def patients_at_once(self, group: Group) -> int:
        if not self._kept:
            return group.patients if group.each == 1 else max(1, _ROWS_AT_ONCE // group.each)
        return max(1, self._bytes // (self._buffer.element_size() * sum(self._widths)))

    def norms(self, group: Group) -> list[Tensor]:
        if not self._kept:
            return []
        if len(self._buffer) < group.patients:
            self._buffer = self._buffer.new_empty((group.patients, sum(self._widths)))
        self._filled = self._buffer[: group.patients]
        parts = self._filled.split_with_sizes(self._widths, dim=1)
        for use, part in zip(self._kept, parts, strict=True):
            use.write(group, part)
        if not self._tied:
            return [norm(self._filled)]
        together: dict[str, Tensor] = {}
        for use, part in zip(self._kept, parts, strict=True):
            add(together, use.read(part))
        return [norm(value) for value in together.values()]

    def add(self, factor: Tensor) -> None:
        if self._kept:
            self._sum.addmv_(self._filled.T, factor)

    def total(self) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        if not self._kept:
            return total
        for use, part in zip(self._kept, self._sum.split_with_sizes(self._widths), strict=True):
            add(total, use.read(part))
        return total


def clip_one(
    gradient: Mapping[str, Tensor], clipping_norm: float, tally: Tally | None = None
) -> dict[str, Tensor] | None:
    """One patient's gradient scaled to at most ``clipping_norm``; None where an entry is not finite.

    The norm is taken in float64 after division by the largest entry, so that squares of 1e200 do not overflow.
    """
    if not all(bool(torch.isfinite(value).all()) for value in gradient.values()):
        return None
    largest = max((float(value.abs().max()) for value in gradient.values() if value.numel()), default=0.0)
    units = {name: value.double() / largest if largest else value for name, value in gradient.items()}
    relative = float(torch.stack([unit.square().sum() for unit in units.values()]).sum().sqrt())
    within = largest == 0.0 or relative <= clipping_norm / largest
    if tally is not None:
        tally.add(int(within), 1)
    if within:
        return dict(gradient)
    dtype = next(iter(gradient.values())).dtype
    scale = clipping_norm * _slack(dtype) / relative
    return {name: (unit * scale).to(gradient[name].dtype) for name, unit in units.items()}


def _slack(dtype: torch.dtype) -> float:
    """A few units in the last place below one, so that rounding does not lift a contribution over its bound."""
    return 1.0 - _SLACK_ULPS * torch.finfo(dtype).eps


def _divided(uses: Sequence[Use], groups: Sequence[Group]) -> tuple[list[Use], list[Use], frozenset[str]]:
    """Uses with ghost norms, uses to instantiate, and parameters with several uses, which must be instantiated."""
    seen = Counter(name for use in uses for name in use.parameters)
    tied = frozenset(name for name, count in seen.items() if count > 1)
    ghosts = [
        use
        for use in uses
        if not tied.intersection(use.parameters) and sum(g.patients * use.saving(g.each) for g in groups) > 0
    ]
    return ghosts, [use for use in uses if use not in ghosts], tied
