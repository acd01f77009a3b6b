"""Could a safetensors file be a table of people? By its header, and for weights by their values.

The header is read here, and not by the library, so that its size is known before it is parsed. Format:
https://huggingface.co/docs/safetensors, "Format": u64 little-endian N, N bytes of JSON, data.
"""

import re
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vht_federate.signing.strict_json import read_json

__all__ = ["look_at_tensors"]

_HEADER = 1 << 19
_TENSORS = 4_096
_DIMENSIONS = 4  # a convolution over images has four
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./|-]{0,159}")
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_COUNTERS = {"BOOL": 1, "U8": 1, "I32": 4, "I64": 8}
_LONG = 1_000  # a dimension that could count people
_SHORT = 200  # columns of a table
_WHOLE = 0.05  # share of whole numbers, beyond -1, 0 and 1; noised training leaves none
_PIECE = 1 << 18

Tensor = tuple[str, tuple[int, ...], int, int]  # dtype, shape, begin and end in the data


def look_at_tensors(path: Path, *, weights: bool = False, reply: bool = False) -> str | None:
    """How the file looks like rows, or None.

    ``weights``: a model's, not noisy counts over public bins; ``reply``: what a node noised, in whatever shape.
    """
    if reply and path.stat().st_size == 0:
        return None
    header = _header(path)
    if header is None:
        return "is not safetensors"
    if "__metadata__" in header:
        return "carries metadata of its own"
    tensors = [_tensor(name, entry) for name, entry in header.items()]
    valid = [tensor for tensor in tensors if tensor is not None]
    if len(valid) != len(tensors) or len(valid) > _TENSORS:
        return "holds tensors with names, types or shapes that no release has"
    if not _adds_up(path, valid):
        return "is not safetensors"
    if not reply and _table_shaped([shape for _, shape, _, _ in valid]):
        return "holds a tensor with the shape of a table of rows"
    if weights and any(dtype in _COUNTERS and prod(shape) > _LONG for dtype, shape, _, _ in valid):
        return "holds whole numbers where weights belong"
    if weights and _mostly_whole(path, valid):
        return "holds whole numbers where weights belong"
    return None


def _header(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(_HEADER, path.stat().st_size - 8):
            return None
        try:
            header = read_json(file.read(size))
        except (ValueError, RecursionError):
            return None
    return header if isinstance(header, dict) else None


def _tensor(name: str, entry: Any) -> Tensor | None:
    """None for what no release has."""
    if not _NAME.fullmatch(name) or not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _FLOATS | _COUNTERS:
        return None
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > _DIMENSIONS:
        return None
    return dtype, tuple(shape), offsets[0], offsets[1]


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 48 for number in value)


def _adds_up(path: Path, tensors: list[Tensor]) -> bool:
    """Every byte of the data belongs to one tensor, and its bytes are as many as its shape says."""
    at = 0
    for dtype, shape, begin, end in sorted(tensors, key=lambda tensor: (tensor[2], tensor[3])):
        if begin != at or end - begin != prod(shape) * _bytes(dtype):
            return False
        at = end
    return path.stat().st_size == _data_at(path) + at


def _bytes(dtype: str) -> int:
    return _COUNTERS.get(dtype) or np.dtype(_FLOATS[dtype]).itemsize


def _data_at(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _table_shaped(shapes: list[tuple[int, ...]]) -> bool:
    """One long dimension and few columns beside it, or a long vector that is no width of a matrix."""
    wide = [tuple(size for size in shape if size != 1) for shape in shapes]
    widths = {size for shape in wide if len(shape) > 1 and sorted(shape)[-2] > _SHORT for size in shape}
    for shape in wide:
        longest = max(shape, default=0)
        if longest < _LONG:
            continue
        if len(shape) == 1 and longest not in widths:
            return True
        if len(shape) > 1 and prod(shape) // longest <= _SHORT:
            return True
    return False


def _mostly_whole(path: Path, tensors: list[Tensor]) -> bool:
    """Ages, pressures and codes are whole numbers, whatever the shape they are laid out in."""
    whole = total = 0
    start = _data_at(path)
    for dtype, shape, begin, _ in tensors:
        remaining = prod(shape) if dtype in _FLOATS else 0
        at = start + begin
        while remaining:
            values = np.fromfile(path, dtype=_FLOATS[dtype], count=min(remaining, _PIECE), offset=at)
            remaining, at = remaining - len(values), at + values.nbytes
            total += len(values)
            whole += int(np.count_nonzero((np.abs(values) >= 2) & (values == np.rint(values))))
    return total > _LONG and whole > _WHOLE * total
