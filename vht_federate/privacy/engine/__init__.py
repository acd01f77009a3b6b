"""Per-patient gradients at close to the cost of plain ones. Imports torch."""

from vht_federate.privacy.engine.engine import EngineChoice, PerPatientEngine
from vht_federate.privacy.engine.loss import Loss
from vht_federate.privacy.engine.options import EngineOptions
from vht_federate.privacy.engine.refusal import trained
from vht_federate.privacy.engine.step import Batch, FixedBatch, noised_sum, noised_sum_and_count

__all__ = [
    "Batch",
    "EngineChoice",
    "EngineOptions",
    "FixedBatch",
    "Loss",
    "PerPatientEngine",
    "noised_sum",
    "noised_sum_and_count",
    "trained",
]
