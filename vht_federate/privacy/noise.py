"""Randomness that hides patients: a protocol, and the one source that product code uses.

Floating-point Gaussian noise leaks through its low-order bits in theory (Mironov 2012); the privacy statement says so.
"""

import os
from typing import Protocol, runtime_checkable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from vht_federate.errors import InputError

__all__ = ["NoiseSource", "SecureNoise"]

_REKEY_AFTER_BYTES = 1 << 32
_STEPS = float(1 << 53)


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


class SecureNoise:
    """A ChaCha20 keystream (RFC 8439) under a key from the operating system; normals by Box and Muller (1958).

    Uniforms have 53 bits, so a normal never exceeds sqrt(2 * 53 * ln 2) = 8.57 in absolute value (what lies beyond has
    probability 1e-17). The key changes after 4 GiB and in a forked child.
    """

    def __init__(self) -> None:
        self._rekey()

    def _rekey(self) -> None:
        self._stream = Cipher(algorithms.ChaCha20(os.urandom(32), os.urandom(16)), mode=None).encryptor()
        self._left = _REKEY_AFTER_BYTES
        self._pid = os.getpid()

    def _integers(self, count: int) -> NDArray[np.uint64]:
        """``count`` integers below 2^53."""
        size = 8 * count
        if size > self._left or self._pid != os.getpid():
            self._rekey()
        self._left -= size
        return np.frombuffer(self._stream.update(bytes(size)), dtype="<u8") >> np.uint64(11)

    def uniform(self, size: int) -> NDArray[np.float64]:
        return self._integers(size).astype(np.float64) / _STEPS

    def gaussian(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        count = int(np.prod(shape, dtype=np.int64))
        pairs = (count + 1) // 2
        never_zero = (self._integers(pairs).astype(np.float64) + 1.0) / _STEPS
        radius = np.sqrt(-2.0 * np.log(never_zero))
        angle = 2.0 * np.pi * self.uniform(pairs)
        normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return normals[:count].reshape(shape)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        if not 0.0 < rate <= 1.0:
            raise InputError("a sampling rate lies in (0, 1]", code="VHT-INPUT-RATE")
        return np.flatnonzero(self.uniform(population) < rate).astype(np.int64)
