"""A safetensors file that is filled in place: what a cohort needs of memory is a window on the disk, not its size.

The format (huggingface/safetensors): header length as 8 bytes, little-endian; a JSON object of (dtype, shape,
data_offsets) by name, padded with spaces to a multiple of 8; then the data without gaps.
"""

import hashlib
import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Sealed", "TensorFile"]

Array = npt.NDArray[Any]
Kind = tuple[type[np.generic], tuple[int, ...]]
_NAMES: dict[type[np.generic], str] = {np.int64: "I64", np.float32: "F32", np.uint8: "U8"}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Sealed:
    """Digests (sha256, hexadecimal) of the file and of each tensor's bytes."""

    sha256: str
    tensors: dict[str, str]


class TensorFile:
    """Tensors of these ``kinds`` (type, shape), all zero at first, to be written through ``arrays`` and then sealed.

    Nobody sees the file under its name before ``seal``. Raises OSError where the disk has no room for all of it, so
    that no later write can fail for that.
    """

    def __init__(self, path: Path, kinds: Mapping[str, Kind]) -> None:
        self._path, self._waiting = path, path.with_name(f".{path.name}.next")
        header, self._spans = _layout(kinds)
        handle = os.open(self._waiting, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "r+b") as stream:
            stream.write(header)
            stream.flush()
            size = max((end for _, end in self._spans.values()), default=len(header))
            os.posix_fallocate(stream.fileno(), 0, size)
            self._map = mmap.mmap(stream.fileno(), size)
        self.arrays: dict[str, Array] = {
            name: np.ndarray(shape, kind, self._map, self._spans[name][0]) for name, (kind, shape) in kinds.items()
        }

    def seal(self) -> Sealed:
        """Bring the file to disk under its name; the arrays are gone."""
        self.arrays = {}
        self._map.flush()
        self._map.close()
        with self._waiting.open("rb") as stream:
            os.fsync(stream.fileno())
            whole = hashlib.file_digest(stream, "sha256").hexdigest()
            tensors = {}
            for name, (start, end) in self._spans.items():
                stream.seek(start)
                tensors[name] = _digest(stream, end - start)
        self._waiting.replace(self._path)
        return Sealed(whole, tensors)


def _layout(kinds: Mapping[str, Kind]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header, and each tensor's place in the file; larger types first, so that every tensor is aligned."""
    table, spans, at = {}, {}, 0
    for name, (kind, shape) in sorted(kinds.items(), key=lambda item: (-np.dtype(item[1][0]).itemsize, item[0])):
        end = at + math.prod(shape) * np.dtype(kind).itemsize
        table[name] = {"dtype": _NAMES[kind], "shape": list(shape), "data_offsets": [at, end]}
        spans[name], at = (at, end), end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: (start + a, start + b) for name, (a, b) in spans.items()}


def _digest(stream: Any, size: int) -> str:
    state = hashlib.sha256()
    while size:
        state.update(piece := stream.read(min(size, _CHUNK)))
        size -= len(piece)
    return state.hexdigest()
