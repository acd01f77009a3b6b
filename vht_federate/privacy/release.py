"""What comes from patients travels wrapped; noise is the only way out.

``Private`` redacts itself, does not iterate, compare, convert, pickle or index: a log line, an f-string or a stray
``np.asarray`` gets nothing. Computation goes on inside with ``map``. ``release_gaussian`` and its float32
twin alone open a ``Private`` for the outside, and they add the noise that the ledger accounts for.
"""

from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vht_federate.errors import EgressError, InputError
from vht_federate.privacy.noise import Float32Noise, NoiseSource

__all__ = ["Private", "release_gaussian", "release_gaussian_float32"]

T = TypeVar("T")
U = TypeVar("U")


class Private(Generic[T]):
    """A value that comes from patients. Its repr says nothing of it."""

    __slots__ = ("__value",)

    def __init__(self, value: T) -> None:
        self.__value = value

    def map(self, function: Callable[[T], U]) -> "Private[U]":
        """``function`` of the value, still private. The function must not keep what it is given."""
        return Private(function(self.__value))

    def _open(self) -> T:
        return self.__value

    def __repr__(self) -> str:
        return "Private(redacted)"

    __str__ = __repr__

    def __format__(self, _: str) -> str:
        return repr(self)

    def _closed(self, *_: Any, **__: Any) -> NoReturn:
        raise EgressError(
            "a private value is read by release_gaussian alone",
            code="VHT-EGRESS-PRIVATE",
            hint="compute inside with Private.map, then release with noise",
        )

    __iter__ = __len__ = __getitem__ = __contains__ = __bool__ = __array__ = _closed
    __int__ = __float__ = __index__ = __complex__ = __bytes__ = _closed
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = _closed
    __reduce_ex__ = _closed
    __hash__ = None  # type: ignore[assignment]


def release_gaussian(
    private: Private[ArrayLike], l2_sensitivity: float, noise_multiplier: float, noise: NoiseSource
) -> NDArray[np.float64]:
    """The value plus N(0, (noise_multiplier * l2_sensitivity)^2) per coordinate, as float64 of the same shape.

    ``l2_sensitivity``: by how much adding or removing one patient can move the value (L2 over all coordinates); the
    caller proves it. Raises InputError for a scale that is not positive and finite, EgressError
    VHT-EGRESS-NONFINITE for a value that noise cannot hide.
    """
    scale = _scale(l2_sensitivity, noise_multiplier)
    value = np.asarray(private._open(), dtype=np.float64)
    drawn = noise.gaussian(value.shape)
    _check_finite(value)
    return value + scale * drawn


def release_gaussian_float32(
    private: Private[ArrayLike], l2_sensitivity: float, noise_multiplier: float, noise: NoiseSource
) -> NDArray[np.float32]:
    """``release_gaussian`` for values that are float32 already: noise of that type, where the source draws it."""
    scale = _scale(l2_sensitivity, noise_multiplier)
    value = np.asarray(private._open(), dtype=np.float32)
    if isinstance(noise, Float32Noise):
        drawn = noise.gaussian_float32(value.shape)
    else:
        drawn = noise.gaussian(value.shape).astype(np.float32)
    _check_finite(value)
    drawn *= np.float32(scale)
    drawn += value
    return drawn


def _scale(l2_sensitivity: float, noise_multiplier: float) -> float:
    scale = l2_sensitivity * noise_multiplier
    if not (np.isfinite(scale) and l2_sensitivity > 0 and noise_multiplier > 0):
        raise InputError("sensitivity and noise multiplier are positive and finite", code="VHT-INPUT-NOISE")
    return scale


def _check_finite(value: NDArray[np.float32] | NDArray[np.float64]) -> None:
    if not np.isfinite(value).all():
        raise EgressError("a value that is not finite cannot be hidden by noise", code="VHT-EGRESS-NONFINITE")
