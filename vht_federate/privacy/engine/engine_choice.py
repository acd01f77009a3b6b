"""Which of three engines runs a model: chosen once, on made-up records, before a patient is read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vht_federate.errors import ComponentError
from vht_federate.privacy.engine.general import runs_in_general
from vht_federate.privacy.engine.loss import Loss, OneByOne
from vht_federate.privacy.engine.loss_trial import tried
from vht_federate.privacy.engine.probe import Profile, made_up, probe
from vht_federate.privacy.engine.record_by_record import check_alone
from vht_federate.privacy.engine.refusal import Unsupported, names_of, trained
from vht_federate.privacy.engine.stack import Stack

__all__ = ["EngineChoice", "Prepared", "prepared"]


@dataclass(frozen=True)
class EngineChoice:
    """Which engine runs a model, and why it is not the fast one. Public: chosen on made-up records."""

    name: Literal["book-keeping", "torch.func", "autograd"]
    why: str = ""


@dataclass(frozen=True, repr=False)
class Prepared:
    """``loss``: the loss as it has to be asked. ``profile``, and ``stack`` where it is one: of the fast engine alone.
    ``buffers``: which no record may change.
    """

    choice: EngineChoice
    loss: Loss
    buffers: tuple[Tensor, ...]
    profile: Profile | None = None
    stack: Stack | None = None


def prepared(model: nn.Module, loss: Loss, inputs: Sequence[Tensor], targets: Tensor) -> Prepared:
    """Asked with made-up records of the shapes and types of ``inputs`` and ``targets``.

    Raises ComponentError VHT-COMPONENT-GRADIENTS for a model or a loss without per-patient gradients.
    """
    parameters = trained(model)
    try:
        profile = probe(model, parameters, names_of(parameters), inputs)
    except ComponentError:
        raise
    except Exception as reason:  # torch's own words on made-up records would help nobody
        why = str(reason) if isinstance(reason, Unsupported) else "the model fails on a batch of made-up records"
        return _of_single_records(model, loss, inputs, targets, why)
    asked = tried(loss, profile.output, targets)
    return Prepared(EngineChoice("book-keeping"), asked, tuple(model.buffers()), profile, Stack.of(model))


def _of_single_records(model: nn.Module, loss: Loss, inputs: Sequence[Tensor], targets: Tensor, why: str) -> Prepared:
    """By ``torch.func`` where it can follow the model and the loss, else by plain autograd."""
    records, output = _run_alone(model, inputs)
    asked = tried(loss, output, targets)
    follows = not isinstance(asked, OneByOne) and runs_in_general(model, asked, records, targets)
    return Prepared(EngineChoice("torch.func" if follows else "autograd", why), asked, tuple(model.buffers()))


def _run_alone(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Made-up records on which the model runs one by one, and the output of one. Raises ComponentError."""
    first_refusal = None
    for records in _made_up(inputs):
        try:
            return records, check_alone(model, trained(model), records)
        except ComponentError as refused:
            first_refusal = first_refusal or refused
    assert first_refusal is not None
    raise first_refusal


def _made_up(inputs: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """With the first category, and where there are categories with the second: a length, or a count, may not be 0."""
    records = [made_up(value) for value in inputs]
    yield records
    if not all(value.is_floating_point() for value in records):
        yield [value if value.is_floating_point() else torch.ones_like(value) for value in records]
