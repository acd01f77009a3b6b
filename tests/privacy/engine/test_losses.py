"""A loss is tried before the first patient: it gives a sum, or is refused in its own words, and never zeros unseen."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from kit.models import STEPS, WIDTH, build
from kit.per_record_reference import clipped_sum_by_definition, largest_difference
from torch import Tensor, nn

from vht_federate.errors import ComponentError
from vht_federate.privacy.engine import EngineOptions, PerPatientEngine
from vht_federate.privacy.engine.loss import Loss

BCE = F.binary_cross_entropy_with_logits


class Scaled(nn.Module):
    """A mean and a variance; a bare parameter keeps the recorder out."""

    def __init__(self, bare: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(STEPS * WIDTH, 2)
        self.scale = nn.Parameter(torch.ones(())) if bare else 1.0

    def forward(self, values: Tensor) -> Tensor:
        return self.layer(values.flatten(1)) * self.scale


def gaussian(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.gaussian_nll_loss(outputs[:, 0], targets, outputs[:, 1].square() + 0.1)


def signed(outputs: Tensor, targets: Tensor) -> Tensor:
    """Looks at a number as people write it."""
    return F.mse_loss(outputs, targets) if float(targets.sum()) > 0 else F.l1_loss(outputs, targets)


def batch(records: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(records, STEPS, WIDTH, generator=generator, dtype=torch.float64)
    return values, (values.sum((1, 2)) > 0).double(), torch.arange(records) // 2


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("fixed", ["never", "always"])
@pytest.mark.parametrize("norm", [1e-3, 0.5, 1e3])
def test_a_loss_that_looks_at_its_numbers_gives_the_sum_of_the_definition(bare: bool, fixed: str, norm: float) -> None:
    torch.manual_seed(2)
    model = Scaled(bare).double()
    values, targets, patient = batch()
    engine = PerPatientEngine(model, gaussian, EngineOptions(fixed_shapes=fixed))  # type: ignore[arg-type]
    sums = engine.clipped_sum((values,), targets, patient, 3, norm)
    expected = clipped_sum_by_definition(model, gaussian, (values,), targets, patient, norm)
    assert largest_difference(sums, expected) < 1e-10
    assert any(bool(value.any()) for value in expected.values())
    assert engine.choice.name == ("autograd" if bare else "book-keeping")
    assert engine.slots(torch.ones(3, dtype=torch.int64).numpy(), 3.0, None, "cpu") is None


@pytest.mark.parametrize("name", ["stack", "gru", "a bare parameter", "plain rnn"])
def test_a_loss_that_takes_another_way_for_another_target_gives_the_sum_of_the_definition(name: str) -> None:
    model, (values, targets, patient) = build(name), batch()
    sums = PerPatientEngine(model, signed).clipped_sum((values,), targets, patient, 3, 0.1)
    expected = clipped_sum_by_definition(model, signed, (values,), targets, patient, 0.1)
    assert largest_difference(sums, expected) < 1e-10


def test_a_loss_that_fails_on_one_patients_numbers_costs_that_patient_alone() -> None:
    def positive(outputs: Tensor, targets: Tensor) -> Tensor:
        if bool((targets < 0).any()):
            raise ValueError("negative")
        return F.mse_loss(outputs, targets)

    model, (values, targets, patient) = build("linear"), batch()
    sums = PerPatientEngine(model, positive).clipped_sum((values,), targets, patient, 3, 0.1)
    targets[1] = -1.0
    without = PerPatientEngine(model, positive).clipped_sum((values,), targets, patient, 3, 0.1)
    others = clipped_sum_by_definition(model, positive, (values[2:],), targets[2:], patient[2:], 0.1)
    assert largest_difference(without, others) < 1e-10
    assert largest_difference(sums, others) > 1e-3


def cox(outputs: Tensor, targets: Tensor) -> Tensor:
    """Partial likelihood: of one record alone it is zero."""
    return (torch.logsumexp(outputs, 0) - outputs[0]) * (1.0 + targets.mean())


def of_two_arguments_more(outputs: Tensor, targets: Tensor, weights: Tensor, more: Tensor) -> Tensor:
    return (outputs * targets * weights * more).mean()


@pytest.mark.parametrize("name", ["linear", "a bare parameter", "plain rnn"])
@pytest.mark.parametrize(
    ("loss", "word"),
    [
        (cox, "the same whatever the model says"),
        (lambda outputs, targets: BCE(outputs.detach(), targets), "the same whatever the model says"),
        (lambda outputs, targets: torch.tensor(BCE(outputs, targets).item()), "the same whatever the model says"),
        (lambda _, targets: targets.mean(), "the same whatever the model says"),
        (lambda outputs, _: outputs.mean() * torch.nan, "the same whatever the model says"),
        (of_two_arguments_more, "the loss fails"),
        (lambda outputs, targets: BCE(outputs, targets.unsqueeze(-1).expand(-1, 7)), "the loss fails"),
    ],
    ids=["cox", "detached", "item", "targets alone", "nan", "other arguments", "other shapes"],
)
def test_a_loss_that_would_sum_to_zero_for_everybody_is_refused_before_a_patient_is_seen(
    name: str, loss: Loss, word: str
) -> None:
    values, targets, _ = batch()
    engine = PerPatientEngine(build(name), loss)
    with pytest.raises(ComponentError, match=word) as caught:
        engine.prepare((values,), targets)
    assert caught.value.code == "VHT-COMPONENT-GRADIENTS"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (F.cross_entropy, 3, torch.tensor([0, 2, 1, 1, 0, 2])),
        (nn.CrossEntropyLoss(label_smoothing=0.1), 3, torch.tensor([0, 2, 1, 1, 0, 2])),
        (lambda outputs, targets: F.poisson_nll_loss(outputs[:, 0], targets), 1, torch.arange(6.0).double()),
        (lambda outputs, targets: F.binary_cross_entropy(torch.sigmoid(outputs[:, 0]), targets), 1, None),
        (lambda outputs, targets: F.hinge_embedding_loss(outputs[:, 0], 2 * targets - 1), 1, None),
        (lambda outputs, targets: F.relu(1 - (2 * targets - 1) * outputs[:, 0]).mean(), 1, None),
        (gaussian, 2, None),
    ],
)
def test_usual_losses_pass_their_trial(
    loss: Callable[[Tensor, Tensor], Tensor], outputs: int, targets: Tensor | None
) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(STEPS * WIDTH, outputs)).double()
    values, outcome, patient = batch()
    targets = outcome if targets is None else targets
    sums = PerPatientEngine(model, loss).clipped_sum((values,), targets, patient, 3, 0.1)
    expected = clipped_sum_by_definition(model, loss, (values,), targets, patient, 0.1)
    assert largest_difference(sums, expected) < 1e-10
