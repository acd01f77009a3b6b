"""How the nodes' updates become the next global weights (``vht_federate.secagg.aggregate``)."""

from vht_federate.secagg.aggregate import Weights, next_weights, read_weights

__all__ = ["Weights", "next_weights", "read_weights"]
