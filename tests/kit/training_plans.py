"""A training plan of no consequence."""

from vht_federate.domain.plan import TrainingPlan

__all__ = ["TRAINING"]


TRAINING = TrainingPlan(
    rounds=3, local_steps=1, sampling_rate=0.5, clipping_norm=1, noise_multiplier=1, learning_rate=0.1
)
