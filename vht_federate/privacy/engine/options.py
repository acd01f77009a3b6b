"""Options of speed. Nothing here can change what a contribution is, how it is clipped, or what noise it gets."""

from dataclasses import dataclass

from vht_federate.errors import InputError

__all__ = ["EngineOptions"]


@dataclass(frozen=True)
class EngineOptions:
    """Bounds of memory, in bytes.

    ``activation_bytes``: what one micro-batch may hold for its layers (inputs, outputs and their gradients).
    ``recurrent_bytes``: the same for models with a recurrent layer, where each of many time steps has a fixed cost.
    ``gradient_bytes``: what the per-patient gradients that are alive at one time may hold.
    """

    activation_bytes: int = 32 << 20
    recurrent_bytes: int = 128 << 20
    gradient_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        if min(self.activation_bytes, self.recurrent_bytes, self.gradient_bytes) <= 0:
            raise InputError("bounds of memory are positive", code="VHT-INPUT-ENGINE")
