"""Randomness that hides patients: a protocol, and the one source that product code uses.

Floating-point Gaussian noise leaks through its low-order bits in theory (Mironov 2012); the privacy statement says so.
"""

import math
import os
from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from vht_federate.errors import InputError

__all__ = ["Float32Noise", "NoiseSource", "RandomWords", "SecureNoise"]

_REKEY_AFTER_BYTES = 1 << 32
_STEPS = float(1 << 53)
_ZEROS = memoryview(bytes(1 << 18))
_BLOCK = 1 << 14  # pairs of normals

Float = TypeVar("Float", np.float32, np.float64)


@runtime_checkable
class NoiseSource(Protocol):
    """Where jobs draw from. Each call is independent of all others."""

    def gaussian(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Standard normals of ``shape``."""
        ...

    def uniform(self, size: int) -> NDArray[np.float64]:
        """``size`` uniforms in [0, 1), 53 bits each."""
        ...

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        """Indices in 0..population-1, each taken independently with probability ``rate``, ascending."""
        ...


@runtime_checkable
class Float32Noise(Protocol):
    """A source that can draw in single precision, for noise that is added in it."""

    def gaussian_float32(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Standard normals of ``shape``."""
        ...


@runtime_checkable
class RandomWords(Protocol):
    """Random bits as they come, for samplers that are exact."""

    def words(self, count: int) -> NDArray[np.uint64]:
        """``count`` words of 64 independent fair bits."""
        ...


class SecureNoise:
    """AES-128 in counter mode under a key from the operating system; normals by Box and Muller (1958).

    Uniforms have 53 bits, so a normal of ``gaussian`` never exceeds sqrt(2 * 53 * ln 2) = 8.57 in absolute value (what
    lies beyond has probability 1e-17). The key changes after 4 GiB and in a forked child.
    """

    def __init__(self) -> None:
        self._rekey()

    def _rekey(self) -> None:
        self._stream = Cipher(algorithms.AES(os.urandom(16)), modes.CTR(os.urandom(16))).encryptor()
        self._left = _REKEY_AFTER_BYTES
        self._pid = os.getpid()

    def _bytes(self, size: int) -> bytes:
        if size > self._left or self._pid != os.getpid():
            self._rekey()
        self._left -= size
        return self._stream.update(_ZEROS[:size] if size <= len(_ZEROS) else bytes(size))

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._bytes(8 * count), dtype="<u8")

    def _integers(self, count: int) -> NDArray[np.uint64]:
        """``count`` integers below 2^53."""
        return np.frombuffer(self._bytes(8 * count), dtype="<u8") >> np.uint64(11)

    def uniform(self, size: int) -> NDArray[np.float64]:
        return self._integers(size).view(np.int64).astype(np.float64) / _STEPS

    def gaussian(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        def draw(pairs: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            uniform, half_angle = (self._integers(pairs).view(np.int64).astype(np.float64) for _ in range(2))
            uniform += 1.0
            uniform *= 1.0 / _STEPS
            half_angle -= 0.5 * _STEPS
            half_angle *= np.pi / _STEPS
            return uniform, half_angle

        return _in_blocks(shape, draw)

    def gaussian_float32(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Standard normals for noise that is added in float32, in about half the time.

        Radius and direction have 32 bits each, which is more than float32 holds. The 2^-32 of radii that lie farthest
        out get 53 bits more, so the tail is no shorter than that of ``gaussian``.
        """

        def draw(pairs: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
            bits = np.frombuffer(self._bytes(8 * pairs), dtype="<u4")
            uniform = bits[:pairs].astype(np.float64)
            uniform += 0.5
            uniform *= 1.0 / 2**32
            if pairs and not bits[:pairs].min():
                farthest = np.flatnonzero(bits[:pairs] == 0)
                uniform[farthest] = (self._integers(len(farthest)) + 1.0) / (_STEPS * 2**32)
            half_angle = bits[pairs:].view(np.int32).astype(np.float32)
            half_angle *= np.float32(np.pi / 2**32)
            return uniform, half_angle

        return _in_blocks(shape, draw)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        if not 0.0 < rate <= 1.0:
            raise InputError("a sampling rate lies in (0, 1]", code="VHT-INPUT-RATE")
        return np.flatnonzero(self.uniform(population) < rate).astype(np.int64)


def _in_blocks(
    shape: tuple[int, ...], draw: Callable[[int], tuple[NDArray[np.float64], NDArray[Float]]]
) -> NDArray[Float]:
    """Normals in blocks that stay in the processor's cache.

    ``draw`` n pairs: uniforms in (0, 1] for the radii, and half angles in [-pi/2, pi/2) in the type that is wanted.
    """
    count = math.prod(shape)
    normals = np.empty(count + count % 2, dtype=draw(0)[1].dtype)
    for start in range(0, len(normals), 2 * _BLOCK):
        block = normals[start : start + 2 * _BLOCK]
        _fill(block, *draw(len(block) // 2))
    return normals[:count].reshape(shape)


def _fill(block: NDArray[Float], uniform: NDArray[np.float64], half_angle: NDArray[Float]) -> None:
    """radius * cos(angle), then radius * sin(angle); radius = sqrt(-2 ln uniform). Both arguments are used up."""
    pairs = len(half_angle)
    cosines, sines = block[:pairs], block[pairs:]
    radius: NDArray[Float] = _logarithm(uniform, block.dtype)
    radius *= -2
    np.sqrt(radius, out=radius)
    # In float32 numpy has vectors for sine and cosine on every processor, for the tangent on AVX-512 alone.
    if block.dtype == np.float32:
        half_angle *= 2
        np.cos(half_angle, out=cosines)
        np.sin(half_angle, out=sines)
        cosines *= radius
        sines *= radius
    else:
        _by_tangent(radius, half_angle, cosines, sines)


def _logarithm(uniform: NDArray[np.float64], wanted: np.dtype[Float]) -> NDArray[Float]:
    """ln ``uniform``, to the digits of the ``wanted`` type; uses its argument up.

    In float32 by ln u = ln w + (u - w) / w, where w is u rounded: numpy has vectors for that logarithm on every
    processor, and next to 1, where radii are small, the second term is what keeps all their digits.
    """
    if wanted == np.float64:
        return np.log(uniform, out=uniform)
    rounded = uniform.astype(wanted)
    uniform -= rounded
    rest = uniform.astype(wanted)
    rest /= rounded
    logarithm = np.log(rounded, out=rounded)
    logarithm += rest
    return logarithm


def _by_tangent(
    radius: NDArray[Float], half_angle: NDArray[Float], cosines: NDArray[Float], sines: NDArray[Float]
) -> None:
    """By the tangent t of the half angle: cos = 2 / (1 + t^2) - 1 and sin = 2 t / (1 + t^2), one function for both."""
    tangent = np.tan(half_angle, out=half_angle)
    np.multiply(tangent, tangent, out=cosines)
    cosines += 1
    np.divide(radius, cosines, out=cosines)
    cosines *= 2
    np.multiply(tangent, cosines, out=sines)
    cosines -= radius
