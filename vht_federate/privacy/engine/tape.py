"""Watches a forward pass: every function that reads a trained parameter is recorded, or the fast engine gives up.

A ``TorchFunctionMode`` sees each torch function whichever module calls it, so a parameter used outside its own layer,
or by an operation that no layer here knows, cannot slip through un-noticed.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from vht_federate.privacy.engine.parameter_use import Use
from vht_federate.privacy.engine.refusal import Unsupported

__all__ = ["Handler", "Tape"]

Handler = Callable[["Tape", tuple[Any, ...], dict[str, Any]], Any]

_ASKS_ONLY = frozenset({"dim", "size", "numel", "stride", "is_floating_point", "is_contiguous", "get_device"})
_PROPERTIES = frozenset(
    {"shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_cpu", "is_nested", "is_sparse"}
)


class Tape(TorchFunctionMode):
    """``names``: parameter names by ``id``. ``records``: rows of the batch, the first dimension of what layers see."""

    def __init__(self, names: dict[int, str], records: int, handlers: dict[Callable[..., Any], Handler]) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self.recurrent = False
        self.records = records
        self._by_id = names
        self._handlers = handlers

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        handler = self._handlers.get(func)
        if handler is not None:
            return handler(self, args, kwargs or {})
        if self._mentions((args, kwargs)) and not _asks_only(func):
            raise Unsupported(f"parameters reach {func.__name__}")
        return func(*args, **(kwargs or {}))

    def name_of(self, value: object) -> str | None:
        """The trained parameter's name; None for anything else."""
        return self._by_id.get(id(value)) if isinstance(value, nn.Parameter) else None

    def check_records(self, value: Tensor, dimension: int = 0) -> None:
        """The input of a layer has one entry per record along ``dimension`` and is no parameter."""
        if value.dim() <= max(1, dimension) or value.shape[dimension] != self.records or self.name_of(value):
            raise Unsupported("records do not lie where the engine expects them")

    def edge(self, output: Tensor) -> GradientEdge:
        """Where the gradient of ``output`` will be asked for: it stays right when the output changes in place."""
        return get_gradient_edge(output)

    def names(self, weight: object, bias: object) -> tuple[str | None, str | None]:
        return self.name_of(weight), self.name_of(bias)

    def _mentions(self, value: object) -> bool:
        if isinstance(value, nn.Parameter):
            return id(value) in self._by_id
        if isinstance(value, tuple | list):
            return any(self._mentions(item) for item in value)
        if isinstance(value, dict):
            return any(self._mentions(item) for item in value.values())
        return False


def _asks_only(func: Callable[..., Any]) -> bool:
    """Whether ``func`` reads a tensor's description and none of its numbers."""
    if func.__name__ == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") in _PROPERTIES
    return func.__name__ in _ASKS_ONLY
