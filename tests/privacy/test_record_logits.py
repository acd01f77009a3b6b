"""Scores are each record's own, whatever a model does with a batch."""

import torch
from torch import Tensor, nn

from vht_federate.privacy.gradients import record_logits


class Mixing(nn.Module):
    """Centres over the batch: one record would move the logits of all others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, values: Tensor) -> Tensor:
        return self.dropout(self.linear(values - values.mean(dim=0))).squeeze(-1)


def test_one_record_cannot_move_the_logit_of_another() -> None:
    model, values = Mixing(), torch.randn(6, 3)
    before = record_logits(model, values)
    changed = values.clone()
    changed[0] = 1e6
    assert torch.equal(record_logits(model, changed)[1:], before[1:])


def test_logits_of_a_model_that_keeps_records_apart_are_those_of_the_batch() -> None:
    model, values = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)), torch.randn(7, 3)
    assert torch.allclose(record_logits(model, values), model(values).detach(), atol=1e-6)


def test_no_record_gives_no_logit() -> None:
    assert record_logits(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), torch.zeros(0, 3)).shape == (0,)
