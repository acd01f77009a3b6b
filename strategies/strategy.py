"""How the nodes' noise-protected weights become the next global weights.

Everything here is post-processing of released values: it costs no privacy.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vht_federate.errors import WireError

__all__ = ["Weights", "patient_weighted_mean", "read_weights"]

Weights = dict[str, NDArray[np.float32]]


def read_weights(data: bytes, like: Mapping[str, NDArray[np.float32]]) -> Weights:
    """A node's weights. Raises WireError VHT-WIRE-WEIGHTS unless names, shapes, types and finiteness match ``like``."""
    try:
        weights = load(data)
    except SafetensorError as error:
        raise WireError("a node's weights are not safetensors", code="VHT-WIRE-WEIGHTS") from error
    if weights.keys() != like.keys():
        raise WireError("a node's weights have other names than the component's", code="VHT-WIRE-WEIGHTS")
    for name, tensor in weights.items():
        if tensor.shape != like[name].shape or tensor.dtype != like[name].dtype or not np.isfinite(tensor).all():
            raise WireError(f"a node's tensor {name} has another shape or is not finite", code="VHT-WIRE-WEIGHTS")
    return weights


def patient_weighted_mean(weights: Sequence[Weights], patients_noised: Sequence[float]) -> bytes:
    """Safetensors bytes of the mean over nodes, weighted by their noised counts of training patients.

    A noised count can fall to zero or below; it then weighs as one patient. Federated averaging, McMahan et al. 2017
    (arXiv:1602.05629), algorithm 1. Shapes: equal over nodes.
    """
    shares = np.maximum(np.asarray(patients_noised, dtype=np.float64), 1.0)
    shares /= shares.sum()
    mean: Weights = {}
    for name, first in weights[0].items():
        total = np.zeros(first.shape, dtype=np.float64)
        for share, one in zip(shares, weights, strict=True):
            total += share * one[name].astype(np.float64)
        mean[name] = total.astype(first.dtype)
    return save(mean)
