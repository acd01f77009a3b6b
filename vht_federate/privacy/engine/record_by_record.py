"""Any model at all, one record after the other by plain autograd: the definition itself, and as slow as that.

For what neither the recorder nor ``torch.func`` follows: recurrent layers with a learned first state, a projection or
packed sequences, plain recurrent networks, control flow that looks at a record's numbers. A record never meets another
one, so nothing can be mixed within a batch; what is left to ask is whether the model keeps what it saw.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vht_federate.errors import ComponentError
from vht_federate.privacy.clipped_count import Tally
from vht_federate.privacy.engine.clipping import add, clip_one
from vht_federate.privacy.engine.loss import Loss
from vht_federate.privacy.engine.model_copies import without_dropout
from vht_federate.privacy.engine.one_patient import patient_gradient
from vht_federate.privacy.engine.patient_records import PatientRecords
from vht_federate.privacy.engine.refusal import check_buffers_kept, refusal

__all__ = ["autograd_sum", "check_alone"]


def autograd_sum(
    model: nn.Module,
    loss: Loss,
    parameters: dict[str, nn.Parameter],
    records: PatientRecords,
    clipping_norm: float,
    tally: Tally | None = None,
) -> dict[str, Tensor]:
    """Sum over patients of clipped contributions, by name of trained parameter (absent: zero), in its type."""
    total: dict[str, Tensor] = {}
    for own in records.apart():
        gradient = patient_gradient(model, loss, parameters, own.inputs, own.targets, records_at_once=1)
        add(total, clip_one(gradient, clipping_norm, tally) or {})
    return total


def check_alone(model: nn.Module, parameters: dict[str, nn.Parameter], records: Sequence[Tensor]) -> Tensor:
    """The output of one made-up record, [1, ...].

    Raises ComponentError VHT-COMPONENT-GRADIENTS where there is none, where it depends on no trained parameter, or
    where the model keeps what it saw.
    """
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        with torch.enable_grad():
            outputs = [model(*(value[row : row + 1] for value in records)) for row in range(len(records[0]))]
        first = outputs[0]
        if not isinstance(first, Tensor) or first.shape[:1] != (1,):
            raise refusal("the output is not one tensor with a row per record", "one record gives [1, ...]")
        learning = [output for output in outputs if output.requires_grad]
        if not learning:
            raise refusal("the output does not depend on a trained parameter")
        torch.autograd.grad(learning[0].sum(), list(parameters.values()), allow_unused=True)
        _check_forgets(model, records)
    except (ComponentError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # its words could be anything, and are about made-up numbers
        raise refusal(
            f"the model fails on a made-up record, with {type(error).__name__}",
            "numbers are noise, whole numbers all 0 or all 1; it must run on one record alone, forward and backward",
        ) from None
    finally:
        check_buffers_kept(model, before)
    return first.detach()


def _check_forgets(model: nn.Module, records: Sequence[Tensor]) -> None:
    """A record's output is the same before and after others, from the same state of the random generator."""
    devices = sorted({value.device.index or 0 for value in model.parameters() if value.is_cuda})

    def output(row: int) -> Tensor:
        torch.manual_seed(22)
        value: Tensor = model(*(value[row : row + 1] for value in records))
        return value.nan_to_num(0.0, 0.0, 0.0)

    with torch.no_grad(), torch.random.fork_rng(devices), without_dropout(model):
        answers = [output(row) for row in (0, 0, 1, 0)]
    del answers[2]
    if len({answer.shape for answer in answers}) > 1 or _moved(answers):
        raise refusal(
            "a record's output changes with what the model saw before",
            "keep no state of inputs in the module, and draw random numbers from torch",
        )


def _moved(answers: Sequence[Tensor]) -> bool:
    if not answers[0].is_floating_point():
        return not all(torch.equal(answer, answers[0]) for answer in answers)
    largest = max((float(answer.abs().max()) for answer in answers if answer.numel()), default=0.0)
    tolerance = largest * torch.finfo(answers[0].dtype).eps ** 0.5
    return any(bool(((answer - answers[0]).abs() > tolerance).any()) for answer in answers)
