"""Per-patient gradients at close to the cost of plain ones. Imports torch."""

from vht_federate.privacy.engine.engine import PerPatientEngine
from vht_federate.privacy.engine.loss import Loss
from vht_federate.privacy.engine.options import EngineOptions

__all__ = ["EngineOptions", "Loss", "PerPatientEngine"]
