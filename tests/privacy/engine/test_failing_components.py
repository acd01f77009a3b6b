"""A component that fails on one patient's numbers: nobody outside learns of it, and nobody else's share changes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from kit.per_record_reference import largest_difference
from torch import Tensor, nn

from connector.enclave.jobs import evaluate
from connector.enclave.request_handler import RoundNoise
from vht_federate.components.job import CohortArrays, JobCall, VisitData
from vht_federate.components.registry import find_component
from vht_federate.domain.plan import EvaluationPlan, StudyPlan, TrainingPlan
from vht_federate.errors import ComponentError
from vht_federate.privacy.clipped_count import Tally
from vht_federate.privacy.engine import EngineOptions, PerPatientEngine, trained
from vht_federate.privacy.engine.slots import Slots
from vht_federate.privacy.gradients import record_logits
from vht_federate.privacy.release import Private
from vht_federate.privacy.training import TrainingTensors
from vht_federate.testing import SeededNoise

BCE = F.binary_cross_entropy_with_logits
CALIBRATED = {"rounds": 1, "local_steps": 1, "sampling_rate": 0.5, "clipping_norm": 1.0, "learning_rate": 0.1}


class Decades(nn.Module):
    """A table of ten decades of age, by an author who knew nobody over 99."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 2), nn.Linear(2, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.table((values[:, 0].nan_to_num() / 10).long())).squeeze(-1)


class Bare(Decades):
    """The same by a way that ``torch.func`` alone can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) * self.scale


def cohort(ages: list[float]) -> TrainingTensors:
    count = len(ages)
    values = np.array(ages, np.float32)[:, None]
    return TrainingTensors(values, (np.arange(count) % 2).astype(np.float32), np.arange(count), count)


@pytest.mark.parametrize("kind", [Decades, Bare])
@pytest.mark.parametrize("fixed", ["never", "always"])
def test_a_patient_on_whom_the_model_fails_contributes_zero_and_the_others_as_ever(kind, fixed: str) -> None:
    torch.manual_seed(4)
    model = kind()
    sums, tallies = [], []
    for ages in ([31.0, 55.0, 103.0, 72.0, 250.0], [31.0, 55.0, 72.0]):
        tensors, tally = cohort(ages), Tally()
        tensors.outcome[:] = 1.0
        engine = PerPatientEngine(model, BCE, EngineOptions(fixed_shapes=fixed))
        engine.prepare((tensors.values,), tensors.outcome)
        slots = Slots(8, 1) if fixed == "always" and kind is Decades else None
        batch = tensors.batch_of(np.arange(len(ages)), slots)
        sums.append(batch.clipped_sum(engine, 0.5, trained(model), tally))
        tallies.append((tally.within, tally.seen))
    assert largest_difference(*sums) < 1e-6
    assert tallies[0] == tallies[1]


def test_a_score_that_the_model_fails_to_give_is_not_a_number_and_the_others_are_as_ever() -> None:
    model = Decades()
    scores = record_logits(model, torch.tensor([[31.0], [103.0], [72.0]]))
    assert torch.isnan(scores).tolist() == [False, True, False]
    assert torch.allclose(scores[::2], record_logits(model, torch.tensor([[31.0], [72.0]])))


@pytest.mark.parametrize("oldest", [55.0, 103.0])
def test_an_evaluation_is_paid_for_before_a_component_sees_a_patient_and_answers_whoever_is_there(
    oldest: float,
) -> None:
    begun: list[str] = []

    class Watching(Decades):
        def forward(self, values: Tensor) -> Tensor:
            begun.append("forward")
            return super().forward(values)

    plan = StudyPlan(
        delta=1e-5,
        training=TrainingPlan(**CALIBRATED, noise_multiplier=1.0),
        evaluation=EvaluationPlan(noise_multiplier=1.0),
    )
    arrays = CohortArrays(
        values=np.array([[31.0], [oldest]], np.float32),
        outcome=np.zeros(2, np.float32),
        patient=np.arange(2),
        bucket=np.zeros(2, np.uint8),
    )
    data = VisitData(
        component=find_component("cardio-risk").component,
        profile="primary-prevention",
        plan=plan,
        codebook=None,
        cohort=Private(arrays),
        build_model=Watching,
        noise=RoundNoise(SeededNoise(1), lambda: begun.append("begun")),
        state={},
        released={},
    )
    weights = {name: value.detach().numpy() for name, value in Decades().named_parameters()}
    reply = evaluate(data, JobCall("evaluate", 1, {}, weights))
    assert len(reply.result["confusion"]) == 4
    assert begun[0] == "begun"
    assert "forward" in begun


def test_a_model_that_fails_on_made_up_records_is_refused_before_a_patient_is_seen() -> None:
    class Picky(Bare):
        def forward(self, values: Tensor) -> Tensor:
            if float(values.sum()) < 30.0:
                raise ValueError(f"too young: {values.tolist()}")
            return super().forward(values)

    tensors = cohort([31.0, 55.0])
    engine = PerPatientEngine(Picky(), BCE)
    with pytest.raises(ComponentError) as caught:
        engine.prepare((tensors.values,), tensors.outcome)
    assert caught.value.code == "VHT-COMPONENT-GRADIENTS"
    assert caught.value.message == "no per-patient gradients: the model fails on a made-up record, with ValueError"
    assert "noise" in caught.value.hint
