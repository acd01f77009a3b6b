"""Models that neither the recorder nor ``torch.func`` follows, and dropout in any engine."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from kit.models import STEPS, WIDTH, Packed
from kit.per_record_reference import clipped_sum_by_definition, largest_difference
from torch import Tensor, nn

from vht_federate.errors import ComponentError
from vht_federate.privacy.clipped_count import Tally
from vht_federate.privacy.engine import EngineChoice, PerPatientEngine

BCE = F.binary_cross_entropy_with_logits


def batch(records: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(records, STEPS, WIDTH, generator=generator, dtype=torch.float64)
    return values, (values.sum((1, 2)) > 0).double(), torch.arange(records) // 2


class Dropping(nn.Module):
    """Its gradient by ``weight`` shows a record's mask; ``layer`` chooses the engine."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.drop = layer, nn.Dropout(0.5)
        self.weight = nn.Linear(STEPS * WIDTH, 1, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.layer(values)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return self.weight(self.drop(hidden.flatten(1) + 3.0)).squeeze(-1)


LAYERS = {
    "book-keeping": lambda: nn.Tanh(),
    "torch.func": lambda: nn.PReLU(),
    "autograd": lambda: nn.RNN(WIDTH, WIDTH, batch_first=True),
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_dropout_gives_a_sum_in_every_engine_and_each_record_has_its_own_mask(name: str) -> None:
    torch.manual_seed(4)
    model = Dropping(LAYERS[name]()).double()
    values = batch()[0][:1].repeat(6, 1, 1)
    engine, tally = PerPatientEngine(model, BCE), Tally()
    sums = engine.clipped_sum((values,), torch.zeros(6).double(), torch.arange(6), 6, 1e3, tally=tally)
    assert engine.choice.name == name
    assert (tally.within, tally.seen) == (6, 6)
    shares = sums["weight.weight"].flatten().abs()
    assert len({round(float(share), 9) for share in shares}) > 3, "one mask for all would leave zero, or one multiple"
    clipped = engine.clipped_sum((values,), torch.zeros(6).double(), torch.arange(6), 6, 1e-3)
    norm = torch.cat([value.flatten() for value in clipped.values()]).norm()
    assert 0.0 < float(norm) <= 6e-3


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_dropout_is_the_same_under_the_same_seed(name: str) -> None:
    torch.manual_seed(4)
    model = Dropping(LAYERS[name]()).double()
    values, outcome, patient = batch()
    engine = PerPatientEngine(model, BCE)
    engine.prepare((values,), outcome)
    sums = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        sums.append(engine.clipped_sum((values,), outcome, patient, 3, 0.1))
    assert largest_difference(sums[0], sums[1]) == 0.0
    assert largest_difference(sums[0], sums[2]) > 0.0


class OfLength(nn.Module):
    """Told how long each sequence is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(WIDTH, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(values, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(self.layer(packed)[1][-1]).squeeze(-1)


def test_sequences_packed_by_a_length_that_is_an_input_give_the_sum_of_the_definition() -> None:
    torch.manual_seed(4)
    model, (values, outcome, patient) = OfLength().double(), batch()
    inputs = (values, 1 + torch.arange(6) % STEPS)
    engine = PerPatientEngine(model, BCE)
    sums = engine.clipped_sum(inputs, outcome, patient, 3, 0.1)
    assert engine.choice.name == "autograd"
    assert largest_difference(sums, clipped_sum_by_definition(model, BCE, inputs, outcome, patient, 0.1)) < 1e-10


def test_the_statement_says_why_no_faster_engine_ran() -> None:
    values, outcome, _ = batch()
    reasons = {
        Packed(nn.GRU(WIDTH, 3, batch_first=True)): "a packed sequence",
        Dropping(nn.RNN(WIDTH, WIDTH, batch_first=True)): "parameters reach rnn_tanh",
        Dropping(nn.LSTM(WIDTH, 7, batch_first=True, proj_size=WIDTH)): "a recurrent layer with a projection",
    }
    for model, why in reasons.items():
        engine = PerPatientEngine(model.double(), BCE)
        engine.prepare((values,), outcome)
        assert engine.choice == EngineChoice("autograd", why)


class Remembering(nn.Module):
    """Keeps, outside any buffer, what it saw last."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head, self.last = layer, nn.Linear(WIDTH, 1), 0.0

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.layer(values)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        output = self.head(hidden).mean((1, 2)) + self.last
        self.last = float(values.detach().mean())
        return output


class Counting(nn.Module):
    """Keeps it in a buffer, behind a layer that the recorder stops at."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.RNN(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, 1)
        self.register_buffer("seen", torch.zeros(WIDTH, dtype=torch.float64))

    def forward(self, values: Tensor) -> Tensor:
        output = self.head(self.layer(values)[0]).mean((1, 2))
        self.seen = self.seen + values.detach().mean((0, 1))
        return output


@pytest.mark.parametrize("layer", [nn.Tanh, lambda: nn.RNN(WIDTH, WIDTH, batch_first=True)], ids=["tanh", "rnn"])
def test_a_model_that_keeps_what_it_saw_is_refused_before_it_sees_a_patient(layer) -> None:
    values, outcome, _ = batch()
    with pytest.raises(ComponentError, match="what the model saw before"):
        PerPatientEngine(Remembering(layer()).double(), BCE).prepare((values,), outcome)
    model = Counting().double()
    with pytest.raises(ComponentError, match="'seen'"):
        PerPatientEngine(model, BCE).prepare((values,), outcome)
    assert not model.seen.any()


def test_a_model_whose_output_leaves_the_graph_is_refused_in_those_words() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, 1)

        def forward(self, values: Tensor) -> Tensor:
            return self.head(values).mean((1, 2)).detach()

    values, outcome, _ = batch()
    with pytest.raises(ComponentError, match="does not depend on a trained parameter"):
        PerPatientEngine(Detached().double(), BCE).prepare((values,), outcome)


def test_a_model_that_takes_another_way_on_real_records_gives_the_sum_all_the_same() -> None:
    class Branching(nn.Module):
        """A class token for records beyond what made-up ones reach: the recorder stops there, and so does vmap."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(WIDTH, 3), nn.Linear(3, 1)

        def forward(self, values: Tensor) -> Tensor:
            hidden = self.layer(values)
            if float(values.abs().max()) > 100.0:
                hidden = hidden * self.layer.bias.square().sum()
            return self.head(torch.tanh(hidden)).mean((1, 2))

    torch.manual_seed(6)
    model, (values, outcome, patient) = Branching().double(), batch()
    values[2] *= 500.0
    engine = PerPatientEngine(model, BCE)
    sums = engine.clipped_sum((values,), outcome, patient, 3, 0.1)
    assert engine.choice.name == "book-keeping"
    apart = clipped_sum_by_definition(model, BCE, (values,), outcome, patient, 0.1)
    assert largest_difference(sums, apart) < 1e-10
