"""However a processor rounds: what is asked of a model has one answer, and what is ill-conditioned is known to be."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from kit.models import MODELS, STEPS, WIDTH, build, engine_of
from kit.per_record_reference import clipped_sum_by_definition
from kit.rounding_errors import OtherRounding, well_conditioned

from vht_federate.privacy.engine import PerPatientEngine

BCE = F.binary_cross_entropy_with_logits


def is_well_conditioned(name: str, number: float | None) -> bool:
    """The contribution of a patient with two records, ``number`` in one of them."""
    model, generator = build(name, 2), torch.Generator().manual_seed(3)
    values = torch.randn(2, STEPS, WIDTH, generator=generator, dtype=torch.float64)
    if number is not None:
        values[1, 0, 0] = number
    outcome, patient = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    return well_conditioned(lambda: clipped_sum_by_definition(model, BCE, (values,), outcome, patient, 0.5))


@pytest.mark.parametrize("name", ["linear", "stack", "gru", "conv1d", "transformer", "a bare parameter"])
@pytest.mark.parametrize("number", [None, 1e3, torch.nan])
def test_the_definition_is_well_conditioned_for_ordinary_records_and_for_none(name: str, number: float | None) -> None:
    assert is_well_conditioned(name, number)


@pytest.mark.parametrize("name", ["gru", "lstm", "layer norm", "embedding", "linear on sequences"])
def test_a_huge_number_is_no_excuse_where_the_definition_stands_it(name: str) -> None:
    assert is_well_conditioned(name, 1e30)


@pytest.mark.parametrize("name", ["attention", "attention with weights and mask", "transformer"])
def test_a_huge_number_in_attention_leaves_the_definition_to_the_order_of_additions(name: str) -> None:
    assert not is_well_conditioned(name, 1e30)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("size", [0.0, 1e6])
def test_the_choice_of_an_engine_is_the_same_whatever_the_weights_and_however_a_processor_rounds(
    name: str, size: float
) -> None:
    model = build(name, 1).float()
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(size ** (1 / 4))
    values = torch.randn(3, STEPS, WIDTH, generator=torch.Generator().manual_seed(2))
    engine = PerPatientEngine(model, BCE)
    with OtherRounding(1, 4.0):
        engine.prepare((values,), torch.zeros(3))
    assert engine.choice.name == engine_of(name)
