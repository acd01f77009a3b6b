"""Tensors as safetensors bytes: read with the caller's own refusal; the same values are written as the same bytes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vht_federate.errors import VhtError

__all__ = ["read_tensors", "write_tensors"]


def read_tensors(data: bytes, refusal: VhtError) -> dict[str, NDArray[Any]]:
    """Arrays by name. Raises ``refusal`` for what is no safetensors file, or holds a type that numpy does not know."""
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise refusal from error


def write_tensors(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """In order of names. An array of no dimension keeps its shape."""
    return save({name: np.asarray(value, order="C") for name, value in sorted(tensors.items())})
