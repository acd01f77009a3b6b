"""What the engine refuses, what it hands over, and what it never says."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from kit.mixing_models import (
    AtItsOwnWeights,
    BehindAGate,
    BehindZeros,
    BeyondAThreshold,
    ByTheirNumber,
    InSinglePrecision,
    Mixing,
)
from kit.models import STEPS, WIDTH, build
from kit.per_record_reference import clipped_sum_by_definition, largest_difference
from torch import Tensor, nn

from vht_federate.errors import ComponentError, InputError
from vht_federate.privacy.engine import EngineChoice, EngineOptions, PerPatientEngine

BCE = F.binary_cross_entropy_with_logits


class Counting(nn.Module):
    """Adds up what it sees in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 1)
        self.register_buffer("seen", torch.zeros(WIDTH))

    def forward(self, values: Tensor) -> Tensor:
        self.seen += values.detach().mean((0, 1)).float()
        return self.linear(values).mean((1, 2))


class Centred(nn.Module):
    """Subtracts the mean over the batch: a record's gradient depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.first(values)
        return self.linear(hidden - hidden.mean(0, keepdim=True)).mean((1, 2))


class SequenceFirst(nn.Module):
    """Keeps records in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.linear(values.transpose(0, 1)).mean((0, 2))


class Overwriting(nn.Module):
    """Changes a layer's input after the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, values: Tensor) -> Tensor:
        hidden = values * 2.0
        output = self.first(hidden)
        hidden.mul_(0.0)
        return self.second(output).mean((1, 2))


def batch(records: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(records, STEPS, WIDTH, generator=generator, dtype=torch.float64)
    return values, (values.sum((1, 2)) > 0).double(), torch.arange(records) // 2


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.BatchNorm1d(WIDTH), "BatchNorm1d"),
        (nn.SyncBatchNorm(WIDTH), "SyncBatchNorm"),
        (nn.InstanceNorm1d(WIDTH, track_running_stats=True), "running statistics"),
        (nn.LazyLinear(2), "lazy"),
        (nn.Linear(2, 2).bfloat16(), "float32 or float64"),
        (nn.Embedding(5, 2, max_norm=1.0), "max_norm"),
        (nn.Flatten(), "no parameter"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_layer_that_breaks_per_patient_gradients_is_refused_with_its_reason(layer: nn.Module, word: str) -> None:
    with pytest.raises(ComponentError, match="per-patient") as caught:
        PerPatientEngine(nn.Sequential(nn.Flatten(), layer), BCE)
    assert caught.value.code == "VHT-COMPONENT-GRADIENTS"
    assert word in caught.value.message + caught.value.hint


def test_batch_normalisation_called_as_a_function_is_refused() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, 1)

        def forward(self, values: Tensor) -> Tensor:
            return F.batch_norm(self.linear(values).mean(1), None, None, training=True).squeeze(-1)

    values, outcome, patient = batch()
    with pytest.raises(ComponentError, match="batch normalisation"):
        PerPatientEngine(Hidden().double(), BCE).clipped_sum((values,), outcome, patient, 3, 1.0)


def test_a_buffer_that_remembers_inputs_is_refused_before_it_sees_a_patient() -> None:
    model = Counting().double()
    values, outcome, patient = batch()
    with pytest.raises(ComponentError, match="'seen'"):
        PerPatientEngine(model, BCE).clipped_sum((values,), outcome, patient, 3, 1.0)
    assert not model.seen.any()


def test_a_model_that_autograd_cannot_differentiate_is_refused() -> None:
    values, outcome, patient = batch()
    with pytest.raises(ComponentError, match="autograd itself"):
        PerPatientEngine(Overwriting().double(), BCE).clipped_sum((values,), outcome, patient, 3, 0.1)


def test_what_the_recorder_cannot_follow_goes_to_the_general_engine() -> None:
    model = SequenceFirst().double()
    values, outcome, patient = batch()
    engine = PerPatientEngine(model, BCE)
    sums = engine.clipped_sum((values,), outcome, patient, 3, 0.1)
    assert engine.choice.name == "torch.func"
    expected = clipped_sum_by_definition(model, BCE, (values,), outcome, patient, 0.1)
    assert largest_difference(sums, expected) < 1e-10


def test_a_model_that_mixes_records_gets_gradients_of_each_record_alone() -> None:
    model = Centred().double()
    values, outcome, patient = batch()
    engine = PerPatientEngine(model, BCE)
    sums = engine.clipped_sum((values,), outcome, patient, 3, 0.1)
    assert engine.choice == EngineChoice("torch.func", "records of a batch are mixed")
    expected = clipped_sum_by_definition(model, BCE, (values,), outcome, patient, 0.1)
    assert largest_difference(sums, expected) < 1e-10


def test_a_gap_filled_from_other_patients_is_found_before_a_patient_is_read() -> None:
    class Filling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, 1)

        def forward(self, values: Tensor) -> Tensor:
            filled = torch.where(torch.isnan(values), torch.nanmean(values, 0, keepdim=True), values)
            return self.head(torch.nan_to_num(filled)).mean((1, 2))

    model = Filling().double()
    values, outcome, patient = batch()
    values[0, 0, 0] = torch.nan
    engine = PerPatientEngine(model, BCE)
    sums = engine.clipped_sum((values,), outcome, patient, 3, 0.1)
    assert engine.choice == EngineChoice("torch.func", "records of a batch are mixed")
    assert model.training
    expected = clipped_sum_by_definition(model, BCE, (values,), outcome, patient, 0.1)
    assert largest_difference(sums, expected) < 1e-10


def choice(model: nn.Module, values: Tensor) -> EngineChoice:
    engine = PerPatientEngine(model, BCE)
    engine.prepare((values,), torch.zeros(len(values)))
    return engine.choice


@pytest.mark.parametrize(
    "kind",
    [Mixing, BehindAGate, BehindZeros, BeyondAThreshold, AtItsOwnWeights, ByTheirNumber, InSinglePrecision],
)
def test_a_mixture_is_found_wherever_it_hides(kind: type[nn.Module]) -> None:
    torch.manual_seed(3)
    assert choice(kind(), batch()[0].float()) == EngineChoice("torch.func", "records of a batch are mixed")


def test_a_mixture_of_categories_is_found_although_made_up_records_have_the_first_one() -> None:
    class Categories(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(4, 3), nn.Linear(3, 1)

        def forward(self, codes: Tensor) -> Tensor:
            rows = self.table(codes)
            common = rows.detach().mean(0, keepdim=True)
            return self.head(rows + common).squeeze(-1)

    assert choice(Categories(), torch.arange(6) % 4).why == "records of a batch are mixed"


@pytest.mark.parametrize("size", [1.0, 1e6, 1e30, float("nan")])
def test_a_mixture_that_torch_func_cannot_take_apart_is_taken_apart_by_autograd_at_any_weights(size: float) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.GRU(WIDTH, 3, batch_first=True), nn.Linear(3, 1)

        def forward(self, values: Tensor) -> Tensor:
            return self.head(self.layer(values - values.mean(0) / 2)[0]).mean((1, 2))

    torch.manual_seed(5)
    model = Recurrent().double()
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(size)
    values, outcome, patient = batch()
    assert choice(model, values) == EngineChoice("autograd", "records of a batch are mixed")
    sums = PerPatientEngine(model, BCE).clipped_sum((values,), outcome, patient, 3, 0.1)
    expected = clipped_sum_by_definition(model, BCE, (values,), outcome, patient, 0.1)
    assert largest_difference(sums, expected) < 1e-10


@pytest.mark.parametrize("size", [0.0, 1e6, 1e30, float("nan")])
@pytest.mark.parametrize("name", ["gru", "transformer", "stack"])
def test_a_model_that_keeps_records_apart_is_taken_at_any_weights_and_left_as_it_was(name: str, size: float) -> None:
    model = build(name).float()
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(size)
    model.register_buffer("scale", torch.ones(3))
    next(model.children()).eval()
    places = [value.data_ptr() for value in model.parameters()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    assert choice(model, batch()[0].float()) == EngineChoice("book-keeping")
    assert [value.data_ptr() for value in model.parameters()] == places
    assert all(
        torch.equal(value.view(torch.int32), before[key].view(torch.int32)) for key, value in model.state_dict().items()
    )
    assert all(value.dtype == torch.float32 and value.grad is None for value in model.parameters())
    assert [module.training for module in model.modules()] == modes


def test_a_model_that_holds_on_to_float32_is_asked_in_it() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.GRU(WIDTH, 3, batch_first=True), nn.Linear(3, 1)
            self.offset = torch.ones(WIDTH)  # no buffer: it stays what it is

        def forward(self, values: Tensor) -> Tensor:
            return self.head(self.layer(values.float() + self.offset)[0]).mean((1, 2))

    assert choice(Single(), batch()[0].float()) == EngineChoice("book-keeping")


def test_a_model_that_cannot_be_copied_is_not_trusted() -> None:
    class Unique(nn.Linear):
        def __deepcopy__(self, memo: dict) -> nn.Module:
            raise TypeError

    model = nn.Sequential(nn.Flatten(), Unique(STEPS * WIDTH, 1), nn.Flatten(0))
    assert choice(model, batch()[0].float()) == EngineChoice("torch.func", "the model cannot be copied")


def test_nothing_is_chosen_before_the_shape_of_a_record_is_known() -> None:
    with pytest.raises(InputError):
        _ = PerPatientEngine(build("linear"), BCE).choice


def test_a_loss_that_couples_records_is_taken_record_by_record() -> None:
    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        """Weighted by how often a class is in the batch: not a mean of independent terms."""
        return BCE(outputs, targets, weight=1.0 + targets * targets.mean())

    model = build("linear")
    values, outcome, patient = batch()
    sums = PerPatientEngine(model, weighted).clipped_sum((values,), outcome, patient, 3, 0.1)
    expected = clipped_sum_by_definition(model, weighted, (values,), outcome, patient, 0.1)
    assert largest_difference(sums, expected) < 1e-10


@pytest.mark.parametrize("patient", [[0, 0, 1, 0, 1, 2], [0, 0, 1, 1, 2, 3], [-1, 0, 0, 1, 1, 2], [0, 1, 2]], ids=str)
def test_records_out_of_order_are_refused(patient: list[int]) -> None:
    values, outcome, _ = batch()
    with pytest.raises(InputError) as caught:
        PerPatientEngine(build("linear"), BCE).clipped_sum((values,), outcome, torch.tensor(patient), 3, 1.0)
    assert caught.value.code == "VHT-INPUT-PATIENTS"


@pytest.mark.parametrize("clipping_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clipping_norm_that_bounds_nothing_is_refused(clipping_norm: float) -> None:
    values, outcome, patient = batch()
    with pytest.raises(InputError):
        PerPatientEngine(build("linear"), BCE).clipped_sum((values,), outcome, patient, 3, clipping_norm)


@pytest.mark.parametrize("name", ["linear", "gru", "conv1d", "transformer"])
def test_one_patient_never_moves_a_float32_sum_by_more_than_the_clipping_norm(name: str) -> None:
    model = build(name).float()
    values, outcome, _ = batch(8)
    for scale in (1e-3, 1.0, 1e3, 1e10, 1e30):
        engine = PerPatientEngine(model, BCE)
        patient = torch.zeros(8, dtype=torch.int64)
        sums = engine.clipped_sum((values.float() * scale,), outcome.float(), patient, 1, 1e-4)
        norm = torch.stack([value.double().square().sum() for value in sums.values()]).sum().sqrt()
        assert float(norm) <= 1e-4


def test_options_of_speed_do_not_change_the_sum() -> None:
    model = build("transformer")
    values, outcome, _ = batch(40)
    patient = torch.repeat_interleave(torch.arange(6), torch.tensor([1, 20, 3, 3, 8, 5]))
    sums = [
        PerPatientEngine(model, BCE, options).clipped_sum((values,), outcome, patient, 6, 0.1)
        for options in (EngineOptions(), EngineOptions(1, 1, 1), EngineOptions(5000, 5000, 5000))
    ]
    assert largest_difference(sums[1], sums[0]) < 1e-12
    assert largest_difference(sums[2], sums[0]) < 1e-12


def test_an_empty_batch_gives_zeros_without_running_the_model() -> None:
    model = build("gru")
    values, outcome, patient = batch()
    sums = PerPatientEngine(model, BCE).clipped_sum((values[:0],), outcome[:0], patient[:0], 5, 1.0)
    assert sums.keys() == dict(model.named_parameters()).keys()
    assert not any(bool(value.any()) for value in sums.values())


def test_a_model_of_several_inputs_one_of_them_whole_numbers() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.recurrent, self.head = nn.Embedding(6, 3), nn.GRU(WIDTH, 3), nn.Linear(6, 1)

        def forward(self, values: Tensor, codes: Tensor) -> Tensor:
            _, last = self.recurrent(values.transpose(0, 1))
            return self.head(torch.cat([last[-1], self.table(codes)], dim=1)).squeeze(-1)

    model, (values, outcome, patient) = Two().double(), batch(9)
    inputs = (values, torch.arange(9) % 6)
    engine = PerPatientEngine(model, BCE)
    sums = engine.clipped_sum(inputs, outcome, patient, 5, 0.05)
    assert engine.choice == EngineChoice("book-keeping")
    expected = clipped_sum_by_definition(model, BCE, inputs, outcome, patient, 0.05)
    assert largest_difference(sums, expected) < 1e-10


def test_a_model_with_dropout_takes_the_fast_way_and_stays_within_the_bound() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(STEPS * WIDTH, 8), nn.Dropout(0.5), nn.Linear(8, 1), nn.Flatten(0))
    values, outcome, patient = batch()
    engine = PerPatientEngine(model.double(), BCE)
    sums = engine.clipped_sum((values,), outcome, patient, 3, 1e-3)
    assert engine.choice == EngineChoice("book-keeping")
    norm = torch.stack([value.square().sum() for value in sums.values()]).sum().sqrt()
    assert 0.0 < float(norm) <= 3e-3
