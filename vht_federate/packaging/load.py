"""Use a component package: verify it, then build its model with the released weights. torch loads here, late."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vht_federate.components.loader import load_model
from vht_federate.errors import VerificationError
from vht_federate.packaging.component import verify_package
from vht_federate.signing.keys import PublicKey
from vht_federate.signing.strict_json import read_json

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LoadedComponent", "load_component"]


@dataclass(frozen=True, repr=False)
class LoadedComponent:
    """A released component, ready to predict. ``description`` is the package's component.json."""

    description: dict[str, Any]
    model: "nn.Module"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input ports, in the order of ``predict``'s columns."""
        return tuple(port["name"] for port in self.description["inputs"])

    def predict(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities [n] from values [n, inputs] in the ports' units; NaN where a value is missing."""
        import torch

        with torch.inference_mode():
            logits = self.model(torch.as_tensor(np.asarray(values, dtype=np.float32)))
            probabilities: NDArray[np.float64] = torch.sigmoid(logits.double()).numpy()
        return probabilities

    def __repr__(self) -> str:
        return f"LoadedComponent({self.description['name']} {self.description['version']})"


def load_component(folder: Path, key: PublicKey | None = None) -> LoadedComponent:
    """Verify the package in ``folder``, then run its code and load its weights.

    ``key`` is the coordinator's, from your trust file. Without it the package's files are compared with its manifest
    and nobody vouches for either: do that only where the bundle around it was verified. Raises VerificationError.
    """
    from safetensors.torch import load

    sealed = verify_package(folder, key)
    model = load_model(folder / "code", str(sealed.manifest["component"]["profile"]))
    try:
        model.load_state_dict(load((folder / "weights.safetensors").read_bytes()))
    except RuntimeError as error:
        raise VerificationError("the weights do not fit the component's code", code="VHT-VERIFY-PACKAGE") from error
    description = read_json((folder / "component.json").read_text(encoding="utf-8"))
    return LoadedComponent(description, model.eval())
