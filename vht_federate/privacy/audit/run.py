"""One audit: train once on canaries, guess which of them were there, and test how batches were drawn.

Imports torch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vht_federate.privacy.audit.broken_engines import Engine, planted
from vht_federate.privacy.audit.canaries import canary_loss, canary_model, canary_tensors
from vht_federate.privacy.audit.claim import AuditedClaim, Plant
from vht_federate.privacy.audit.guessing import Guesses, lower_bound, refutes
from vht_federate.privacy.audit.sampling import SamplingTest, sampling_test
from vht_federate.privacy.engine import EngineOptions, PerPatientEngine
from vht_federate.privacy.noise import NoiseSource
from vht_federate.privacy.release import Private
from vht_federate.privacy.training import train_round

__all__ = ["GUESSING", "SAMPLING", "Finding", "Sighting", "audit", "judge", "observe"]

GUESSING = "f-dp-one-run"
SAMPLING = "poisson-sampling"


@dataclass(frozen=True)
class Sighting:
    """What the attacker got to see of one training run, and what the coins had been."""

    guesses: Guesses
    batches: tuple[NDArray[np.int64], ...]
    patients: int


@dataclass(frozen=True)
class Finding:
    """``lower_bound`` and ``cap`` are epsilons at the claim's delta; ``test`` names what refuted, or what was run."""

    claimed: float
    lower_bound: float
    cap: float
    confidence: float
    refuted: bool
    test: str
    guesses: Guesses
    sampling: SamplingTest


def audit(
    claim: AuditedClaim, noise: NoiseSource, plant: Plant | None = None, options: EngineOptions | None = None
) -> Finding:
    """Train with the engine that nodes use, or with one broken by ``plant``, and judge it by ``claim``."""
    engine, source = planted(plant, noise) if plant else (train_round, noise)
    return judge(claim, observe(claim, engine, source, options))


def observe(claim: AuditedClaim, engine: Engine, noise: NoiseSource, options: EngineOptions | None = None) -> Sighting:
    """Toss a coin for each canary, train with those that are in, and guess the likeliest to have been in.

    The attacker knows the plan, every canary and the weights after every step, and not the coins. A step's noised sum
    is the change of the weights: the learning rate takes the division by the expected batch back.
    """
    plan = claim.plan
    present = noise.uniform(claim.canaries) < 0.5
    batches: list[NDArray[np.int64]] = []
    data = canary_tensors(present, batches.append)
    plan = plan.model_copy(update={"learning_rate": plan.sampling_rate * data.patients})
    gradients = PerPatientEngine(canary_model(claim.canaries, plan.clipping_norm), canary_loss, options)
    score, before, norm = np.zeros(claim.canaries), np.zeros(claim.canaries), plan.clipping_norm
    for _ in range(plan.rounds):
        trained = engine(gradients, Private(data), float(data.patients), plan, noise, norm)
        (after,) = (value.astype(np.float64).ravel() for value in trained.weights.values())
        score += _evidence((after - before) / norm, plan.sum_noise_multiplier / 2, plan.sampling_rate)
        before, norm = after, trained.clipping_norm
    likeliest = np.argsort(score, kind="stable")[claim.canaries - claim.guesses :]
    correct = int(present[likeliest].sum())
    return Sighting(Guesses(claim.canaries, claim.guesses, correct), tuple(batches), data.patients)


def _evidence(seen: NDArray[np.float64], noise: float, rate: float) -> NDArray[np.float64]:
    """Logarithm of the likelihood ratio of in to out of one step's coordinates under ``noise``.

    Any score is sound. One made for half the claimed noise sees a halved noise best, and is otherwise as good.
    """
    ratio = (2.0 * seen - 1.0) / (2.0 * noise**2)
    evidence: NDArray[np.float64] = np.logaddexp(np.log1p(-rate) if rate < 1 else -np.inf, np.log(rate) + ratio)
    return evidence


def judge(claim: AuditedClaim, seen: Sighting) -> Finding:
    """Both tests, each at half the permitted chance of a false alarm."""
    batches = sampling_test(seen.batches, seen.patients, claim.plan.sampling_rate)
    guessed = refutes(claim.curve(), seen.guesses, claim.significance)
    sampled = batches.p <= claim.significance
    everything = Guesses(claim.canaries, claim.guesses, claim.guesses)
    ways = [name for name, hit in ((GUESSING, guessed), (SAMPLING, sampled)) if hit] or [GUESSING, SAMPLING]
    return Finding(
        claimed=claim.epsilon,
        lower_bound=lower_bound(claim.curve, seen.guesses, claim.significance, claim.delta),
        cap=lower_bound(claim.curve, everything, claim.significance, claim.delta),
        confidence=claim.confidence,
        refuted=guessed or sampled,
        test="+".join(ways),
        guesses=seen.guesses,
        sampling=batches,
    )
