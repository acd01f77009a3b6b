"""How updates of several nodes become one: the seam between what a node sends and what a coordinator combines.

A node encodes its update before it leaves the enclave; the coordinator combines what arrived. Which protocol holds
is the ``trust_model`` of the study's plan, so that both halves, the accounting and the privacy statement name the same
one.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vht_federate.errors import InputError, WireError

__all__ = ["FullNoiseAtEachNode", "SumProtocol", "Weights", "protocol_of"]

Weights = Mapping[str, NDArray[Any]]


class SumProtocol(Protocol):
    """Both halves of one way to add up."""

    trust_model: str

    def encode(self, weights: Weights) -> dict[str, NDArray[Any]]:
        """At the node, after noise: what leaves for ``weights``."""
        ...

    def combine(self, weights: Mapping[str, Weights], counts: Mapping[str, float]) -> dict[str, NDArray[np.float32]]:
        """At the coordinator: the mean of what the nodes encoded, weighted by ``counts`` (released, noised)."""
        ...


class FullNoiseAtEachNode:
    """Every node's update carries the full noise and travels as it is; the coordinator takes the weighted mean."""

    trust_model = "full-noise-at-each-node"

    def encode(self, weights: Weights) -> dict[str, NDArray[Any]]:
        return {name: np.asarray(value) for name, value in weights.items()}

    def combine(self, weights: Mapping[str, Weights], counts: Mapping[str, float]) -> dict[str, NDArray[np.float32]]:
        """Sums in float64 in the order of node names: the same input gives the same bytes.

        Raises InputError where there is no node or a count is not positive, WireError VHT-WIRE-WEIGHTS where nodes
        disagree on names or shapes, or a value is not finite.
        """
        nodes = sorted(weights)
        if not nodes or set(nodes) != set(counts) or not all(0 < counts[node] < np.inf for node in nodes):
            raise InputError("every node that is combined needs a positive count", code="VHT-INPUT-COMBINE")
        first = weights[nodes[0]]
        for node in nodes:
            shapes = {name: value.shape for name, value in weights[node].items()}
            finite = all(np.isfinite(value).all() for value in weights[node].values())
            if shapes != {name: value.shape for name, value in first.items()} or not finite:
                raise WireError(f"the update of {node} does not fit the others", code="VHT-WIRE-WEIGHTS")
        total = float(sum(counts[node] for node in nodes))
        combined = {}
        for name in sorted(first):
            mean = np.zeros(first[name].shape, dtype=np.float64)
            for node in nodes:
                mean += counts[node] / total * weights[node][name].astype(np.float64)
            combined[name] = mean.astype(np.float32)
        return combined


_PROTOCOLS: dict[str, SumProtocol] = {FullNoiseAtEachNode.trust_model: FullNoiseAtEachNode()}


def protocol_of(trust_model: str) -> SumProtocol:
    """The protocol that a plan's ``trust_model`` names. Raises InputError VHT-INPUT-TRUST-MODEL: fail closed."""
    if trust_model not in _PROTOCOLS:
        raise InputError(
            f"no sum protocol for the trust model {trust_model!r}",
            code="VHT-INPUT-TRUST-MODEL",
            hint=f"known: {', '.join(sorted(_PROTOCOLS))}",
        )
    return _PROTOCOLS[trust_model]
