"""How the nodes' updates become the next global weights: checked, then combined by the plan's sum protocol.

Everything here is post-processing of released values: it costs no privacy, and whoever holds the updates can do it
again. Nodes are weighted by their noised counts of training patients (federated averaging, McMahan et al. 2017,
arXiv:1602.05629, algorithm 1).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vht_federate.errors import WireError
from vht_federate.secagg.protocol import protocol_of
from vht_federate.tensors import read_tensors, write_tensors

__all__ = ["Weights", "next_weights", "read_weights"]

Weights = dict[str, NDArray[np.float32]]
LEAST_COUNT = 1.0  # a noised count may fall to zero or below: such a node weighs as one patient


def read_weights(data: bytes, like: Mapping[str, NDArray[np.float32]]) -> Weights:
    """A node's update. Raises WireError VHT-WIRE-WEIGHTS unless names, shapes, types and finiteness match ``like``."""
    weights = read_tensors(data, WireError("a node's update is not safetensors", code="VHT-WIRE-WEIGHTS"))
    if weights.keys() != like.keys():
        raise WireError("a node's update has other names than the component's weights", code="VHT-WIRE-WEIGHTS")
    for name, tensor in weights.items():
        if tensor.shape != like[name].shape or tensor.dtype != like[name].dtype or not np.isfinite(tensor).all():
            raise WireError(f"a node's tensor {name} has another shape or is not finite", code="VHT-WIRE-WEIGHTS")
    return weights


def next_weights(trust_model: str, updates: Mapping[str, Weights], patients_noised: Mapping[str, float]) -> bytes:
    """Safetensors bytes of the combined weights; the same updates give the same bytes.

    Raises InputError VHT-INPUT-TRUST-MODEL for a trust model without a sum protocol.
    """
    counts = {name: max(patients_noised[name], LEAST_COUNT) for name in updates}
    combined = protocol_of(trust_model).combine(updates, counts)
    return write_tensors(combined)
