"""Tensors of a safetensors file as windows on it: opened once, digested as a stream, then mapped, never copied.

What is mapped is private to this process (copy on write): nothing it does to the arrays reaches the file.
"""

import hashlib
import json
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["mapped_tensors"]

_TYPES: dict[str, type[np.generic]] = {
    "I64": np.int64, "I32": np.int32, "F64": np.float64, "F32": np.float32, "U8": np.uint8,
}  # fmt: skip
_LARGEST_HEADER = 1 << 20


def mapped_tensors(path: Path) -> tuple[str, dict[str, NDArray[Any]]]:
    """(sha256 of the file, its tensors). Raises OSError, or ValueError for a file that is not exactly such tensors."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        return digest, _tensors(mapped)
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("the header is not one of tensors") from error


def _tensors(mapped: mmap.mmap) -> dict[str, NDArray[Any]]:
    size = int.from_bytes(mapped[:8], "little")
    if not 2 <= size <= min(_LARGEST_HEADER, len(mapped) - 8):
        raise ValueError("the header does not fit the file")
    start = at = 8 + size
    tensors = {}
    for name, entry in sorted(json.loads(mapped[8:start]).items(), key=lambda item: item[1]["data_offsets"]):
        kind, shape = _TYPES[entry["dtype"]], tuple(entry["shape"])
        if any(type(length) is not int or length < 0 for length in shape):
            raise ValueError("a shape is not one")
        end = at + math.prod(shape) * np.dtype(kind).itemsize
        if entry["data_offsets"] != [at - start, end - start] or end > len(mapped):
            raise ValueError("tensors overlap, leave gaps or pass the end")
        tensors[name] = np.ndarray(shape, kind, mapped, at) if end > at else np.empty(shape, kind)
        at = end
    if at != len(mapped):
        raise ValueError("bytes follow the last tensor")
    return tensors
