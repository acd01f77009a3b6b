"""Where the code of an enclave's job comes from, as the node's evidence names it."""

from pydantic import BaseModel, ConfigDict

from vht_federate.domain.permit import Sha256

__all__ = ["JobOrigin"]


class JobOrigin(BaseModel):
    """The installed distribution that registers a job, and the package that runs.

    ``digest``: SHA-256 over one line ``PATH SHA256`` for each file of the job's top-level package, by path, compiled
    files left out; the same wherever the same version is installed, also from a checkout.
    """

    model_config = ConfigDict(frozen=True)  # a later version may say more: an auditor reads on

    distribution: str
    version: str
    entry: str  # module:function
    digest: Sha256
