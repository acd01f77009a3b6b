"""Whole audits: one seed of each engine. ``make bench ONLY=dp-audit`` has twenty."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from vht_federate.cli import app
from vht_federate.domain.plan import AdaptiveClipping, BatchLimit, TrainingPlan
from vht_federate.errors import InputError
from vht_federate.privacy.audit import run
from vht_federate.privacy.audit.canaries import canary_loss, canary_model, canary_tensors
from vht_federate.privacy.audit.claim import AuditedClaim, Plant
from vht_federate.privacy.engine import EngineOptions
from vht_federate.privacy.gradients import clipped_sum
from vht_federate.privacy.noise import SecureNoise
from vht_federate.testing import SeededNoise


@pytest.mark.parametrize(
    ("plant", "test"),
    [
        (Plant.SIGMA_HALVED, run.GUESSING),
        (Plant.NO_CLIPPING, run.GUESSING),
        (Plant.NO_NOISE, run.GUESSING),
        (Plant.SHUFFLED, run.SAMPLING),
    ],
)
def test_a_broken_engine_is_refuted(plant: Plant, test: str) -> None:
    finding = run.audit(AuditedClaim(), SeededNoise(11), plant)
    assert finding.refuted
    assert test in finding.test
    if test == run.GUESSING:
        assert finding.claimed - 0.01 < finding.lower_bound <= finding.cap


def test_the_engine_that_nodes_use_passes() -> None:
    """An audit at 99.9 % refutes a true engine once in a thousand times: three in a row are once in 10^9 runs."""
    for _ in range(3):
        finding = run.audit(AuditedClaim(), SecureNoise())
        if not finding.refuted:
            break
    assert not finding.refuted
    assert 0.9 < finding.claimed <= 1.0
    assert finding.lower_bound < finding.claimed < finding.cap


@pytest.mark.parametrize("plant", [None, Plant.SIGMA_HALVED])
def test_an_adaptive_clipping_norm_keeps_the_claim_and_hides_no_broken_engine(plant: Plant | None) -> None:
    plan = AuditedClaim().plan.model_copy(update={"adaptive_clipping": AdaptiveClipping(learning_rate=0.1)})
    finding = run.audit(AuditedClaim(plan=plan), SeededNoise(11), plant)
    assert finding.claimed == AuditedClaim().epsilon
    assert finding.refuted == (plant is not None)


@pytest.mark.parametrize("plant", [None, Plant.SIGMA_HALVED, Plant.NO_CLIPPING, Plant.SHUFFLED])
def test_steps_of_one_shape_and_bounded_batches_keep_the_claim_and_hide_no_broken_engine(plant: Plant | None) -> None:
    """As nodes with a GPU train."""
    limit = BatchLimit(patients=220, population=12_000)
    plan = AuditedClaim().plan.model_copy(update={"batch_limit": limit})
    finding = run.audit(AuditedClaim(plan=plan), SeededNoise(11), plant, EngineOptions(fixed_shapes="always"))
    assert finding.refuted == (plant is not None)


def test_the_claim_has_enough_canaries_and_confidence() -> None:
    claim = AuditedClaim()
    assert claim.canaries >= 5000
    assert claim.confidence >= 0.999
    assert claim.epsilon <= 1.0


def test_a_canarys_gradient_is_a_direction_of_its_own_longer_than_the_clipping_norm() -> None:
    present = np.array([True, False, True, True, True])
    tensors = canary_tensors(present, lambda _: None)
    assert tensors.patients == 4
    assert np.diff(tensors.first).tolist() == [1, 3, 1, 2]
    model = canary_model(5, 0.5)
    batch = tensors.records_of(np.arange(4))
    everybody = (batch.inputs[0], batch.targets, batch.patient)
    assert clipped_sum(model, canary_loss, *everybody, 0.5)["linear.weight"].tolist() == [[-0.5, 0, -0.5, -0.5, -0.5]]
    assert clipped_sum(model, canary_loss, *everybody, 1e9)["linear.weight"].tolist() == [[-5.0, 0, -5.0, -5.0, -5.0]]


def test_without_noise_and_with_everybody_sampled_every_guess_is_right() -> None:
    plan = TrainingPlan(
        rounds=2, local_steps=1, sampling_rate=1.0, clipping_norm=1.0, noise_multiplier=1.0, learning_rate=1.0
    )
    claim = AuditedClaim(plan=plan, canaries=500, guesses=100)
    sighting = run.observe(claim, *run.planted(Plant.NO_NOISE, SeededNoise(0)))
    assert sighting.guesses.correct == 100
    assert [len(batch) for batch in sighting.batches] == [sighting.patients] * 2


def test_the_watched_batches_are_what_the_sampler_drew() -> None:
    claim = AuditedClaim(canaries=500, guesses=10)

    class Recorder(SeededNoise):
        drawn: list[np.ndarray]

        def poisson_sample(self, population, rate):
            self.drawn.append(super().poisson_sample(population, rate))
            return self.drawn[-1]

    noise = Recorder(4)
    noise.drawn = []
    sighting = run.observe(claim, run.train_round, noise)
    assert len(sighting.batches) == claim.plan.rounds
    assert all(np.array_equal(a, b) for a, b in zip(sighting.batches, noise.drawn, strict=True))


@pytest.mark.parametrize("changes", [{"local_steps": 2}, {"momentum": 0.5}, {"weight_decay": 0.1}])
def test_a_plan_whose_steps_the_attacker_cannot_see_one_by_one_is_refused(changes) -> None:
    with pytest.raises(InputError, match="one plain step"):
        AuditedClaim(plan=AuditedClaim().plan.model_copy(update=changes))


@pytest.mark.parametrize(("refuted", "code"), [(False, 0), (True, 3)])
def test_the_command_prints_the_finding_and_leaves_with_its_code(monkeypatch, refuted: bool, code: int) -> None:
    calls = []

    def made_up(claim, noise, plant):
        calls.append((type(noise), plant))
        right = 239 if refuted else 130
        batches = tuple(SeededNoise(step).poisson_sample(10_000, 0.01) for step in range(50))
        return run.judge(claim, run.Sighting(run.Guesses(claim.canaries, claim.guesses, right), batches, 10_000))

    monkeypatch.setattr(run, "audit", made_up)
    from vht_federate import output

    output.set_json_mode(True)
    try:
        result = CliRunner().invoke(app, ["privacy", "audit", *(["--plant", "no-noise"] if refuted else [])])
    finally:
        output._json_mode.set(False)
    assert result.exit_code == code
    data = json.loads(result.stdout)["data"]
    assert {"claimed", "lower_bound", "confidence", "refuted", "test"} <= set(data)
    assert data["refuted"] is refuted
    assert (data["lower_bound"] > data["claimed"]) is refuted
    assert (data["refusal"] or {}).get("code") == ("VHT-REFUSED-AUDIT" if refuted else None)
    assert calls == [(SecureNoise, Plant.NO_NOISE if refuted else None)]
