"""Options of speed. Nothing here can change what a contribution is, how it is clipped, or what noise it gets."""

from dataclasses import dataclass
from typing import Literal

from vht_federate.errors import InputError

__all__ = ["EngineOptions"]


@dataclass(frozen=True)
class EngineOptions:
    """Bounds of memory, in bytes, and whether shapes stay the same.

    ``activation_bytes``: what one micro-batch may hold for its layers (inputs, outputs and their gradients).
    ``recurrent_bytes``: the same for models with a recurrent layer, where each of many time steps has a fixed cost.
    ``gradient_bytes``: what the per-patient gradients that are alive at one time may hold.
    ``fixed_shapes``: lay patients out in slots, so that every step is the same program; "auto": on CUDA alone, where
    ``graphs`` has it recorded and replayed.
    """

    activation_bytes: int = 32 << 20
    recurrent_bytes: int = 128 << 20
    gradient_bytes: int = 4 << 20
    fixed_shapes: Literal["auto", "always", "never"] = "auto"
    graphs: bool = True

    def __post_init__(self) -> None:
        if min(self.activation_bytes, self.recurrent_bytes, self.gradient_bytes) <= 0:
            raise InputError("bounds of memory are positive", code="VHT-INPUT-ENGINE")

    @classmethod
    def of(cls, device: str) -> "EngineOptions":
        """Bounds for a device ("cpu", "cuda"): a GPU has memory to spare, and wants much to do at a time."""
        if device != "cuda":
            return cls()
        return cls(activation_bytes=2 << 30, recurrent_bytes=2 << 30, gradient_bytes=256 << 20)

    def fixes_shapes_on(self, device: str) -> bool:
        return self.fixed_shapes == "always" or (self.fixed_shapes == "auto" and device == "cuda")
