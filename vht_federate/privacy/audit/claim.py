"""What an audit puts to the test: a training plan, the claim that goes with it, and how hard the attacker tries.

Does not import torch.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.plan import TrainingPlan
from vht_federate.errors import InputError
from vht_federate.privacy.accounting import epsilon
from vht_federate.privacy.audit.tradeoff import Tradeoff, tradeoff

__all__ = ["AuditedClaim", "Plant"]

_PLAN = TrainingPlan(
    rounds=50,
    local_steps=1,
    sampling_rate=0.01,
    clipping_norm=1.0,
    noise_multiplier=0.86,  # epsilon 0.995 at delta 1e-5
    learning_rate=1.0,
)


class Plant(StrEnum):
    """What can be broken on purpose in the engine under audit."""

    SIGMA_HALVED = "sigma-halved"
    NO_CLIPPING = "no-clipping"
    NO_NOISE = "no-noise"
    SHUFFLED = "shuffled"


@dataclass(frozen=True)
class AuditedClaim:
    """``plan`` as a study would run it, one step a round, so that the attacker sees the weights after every step.

    Noise below one and rare sampling, as in ordinary training: there a halved noise costs most, and 240 guesses about
    20,000 canaries are enough to see it. ``confidence`` covers both tests of an audit together.
    """

    plan: TrainingPlan = _PLAN
    delta: float = 1e-5
    canaries: int = 20_000
    guesses: int = 240
    confidence: float = 0.999

    def __post_init__(self) -> None:
        if self.plan.local_steps != 1 or self.plan.momentum or self.plan.weight_decay:
            raise InputError("an audited plan has one plain step a round", code="VHT-INPUT-AUDIT")
        if not 1 <= self.guesses <= self.canaries:
            raise InputError("there are at least as many canaries as guesses", code="VHT-INPUT-AUDIT")

    @property
    def events(self) -> tuple[PrivacyEvent, ...]:
        """What the ledger would be charged."""
        return (
            PrivacyEvent(
                label="train",
                population="train",
                noise_multiplier=self.plan.noise_multiplier,
                sampling_rate=self.plan.sampling_rate,
                steps=self.plan.rounds,
            ),
        )

    @cached_property
    def epsilon(self) -> float:
        """The claimed epsilon, by the ledger's accountant."""
        return epsilon(self.events, self.delta)

    def curve(self, factor: float = 1.0) -> Tradeoff:
        """The f-DP curve of the claim, or with its noise multiplied by ``factor``."""
        noise = round(self.plan.noise_multiplier * factor, 6)
        return tradeoff(noise, self.plan.sampling_rate, self.plan.rounds)

    @property
    def significance(self) -> float:
        """Chance of a false alarm of each of the two tests, at most."""
        return (1.0 - self.confidence) / 2
