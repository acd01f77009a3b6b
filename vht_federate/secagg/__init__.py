"""Adding up what nodes send: protocols as pure functions, no I/O."""

from vht_federate.secagg.protocol import FullNoiseAtEachNode, SumProtocol, Weights, protocol_of

__all__ = ["FullNoiseAtEachNode", "SumProtocol", "Weights", "protocol_of"]
