"""Use a component package: verify it, then build its model with the released weights. torch loads here, late."""

from pathlib import Path
from typing import TYPE_CHECKING

from vht_federate.components.loader import load_model
from vht_federate.errors import VerificationError
from vht_federate.evidence.keys import PublicKey
from vht_federate.packaging.component import verify_package

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_component"]


def load_component(folder: Path, key: PublicKey) -> "nn.Module":
    """The package's model in evaluation mode: values [n, inputs] in clinical units -> logits [n].

    ``key`` is the coordinator's, from your trust file. Runs the package's code, and only after its seal held.
    Raises VerificationError.
    """
    from safetensors.torch import load

    sealed = verify_package(folder, key)
    model = load_model(folder / "code", str(sealed.manifest["component"]["profile"]))
    try:
        model.load_state_dict(load((folder / "weights.safetensors").read_bytes()))
    except RuntimeError as error:
        raise VerificationError("the weights do not fit the component's code", code="VHT-VERIFY-PACKAGE") from error
    return model.eval()
