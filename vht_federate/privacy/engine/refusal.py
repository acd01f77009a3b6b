"""What cannot have per-patient gradients, said with a reason, and what the fast engine hands to the general one."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import UninitializedParameter

from vht_federate.errors import ComponentError

__all__ = ["Unsupported", "check_buffers_kept", "check_model", "names_of", "refusal", "trained"]

CODE = "VHT-COMPONENT-GRADIENTS"


class Unsupported(Exception):
    """The fast engine cannot follow this model: the general engine takes over. Carries no value of any tensor."""


def refusal(reason: str, hint: str = "") -> ComponentError:
    return ComponentError(f"no per-patient gradients: {reason}", code=CODE, hint=hint)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that gradients are wanted for; a tied one appears once, under its first name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def names_of(parameters: dict[str, nn.Parameter]) -> dict[int, str]:
    """Names by ``id``."""
    return {id(value): name for name, value in parameters.items()}


def check_model(model: nn.Module) -> None:
    """Raise ComponentError VHT-COMPONENT-GRADIENTS for what mixes patients or keeps what it saw of them."""
    for name, module in model.named_modules():
        at = f"'{name}' ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise refusal(f"{at} is compiled TorchScript, whose layers cannot be seen", "use the Python module")
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            raise refusal(
                f"{at} normalises over the batch, so that each record's gradient depends on other patients",
                "use GroupNorm or LayerNorm",
            )
        if isinstance(module, _InstanceNorm) and module.training and module.track_running_stats:
            raise refusal(f"{at} keeps running statistics of patients without noise", "set track_running_stats=False")
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise refusal(f"{at} rescales its weights to max_norm while reading them", "leave max_norm unset")
    for name, value in model.named_parameters():
        if isinstance(value, UninitializedParameter):
            raise refusal(f"parameter '{name}' has no shape yet", "run the lazy module once on made-up input")
        if value.requires_grad and value.dtype not in (torch.float32, torch.float64):
            raise refusal(f"parameter '{name}' is {value.dtype}: norms need float32 or float64")
    if not trained(model):
        raise refusal("the model has no parameter to train")


def check_buffers_kept(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    """Put changed buffers back to ``before`` and raise ComponentError: a buffer would carry patients out un-noised."""
    changed = [
        name
        for name, value in model.named_buffers()
        if name not in before or value.shape != before[name].shape or not torch.equal(value, before[name])
    ]
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name in changed and name in before and value.shape == before[name].shape:
                value.copy_(before[name])
    if changed:
        raise refusal(f"the forward pass changes buffer '{changed[0]}'", "keep no state of inputs in the module")
