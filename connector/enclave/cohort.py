"""Reads a visit's tensors and believes nothing about them. They stay on the disk: what is used of them is mapped."""

from pathlib import Path

import numpy as np

from connector.enclave.mapped_tensors import mapped_tensors
from vht_federate.components.contract import Component, Profile
from vht_federate.components.job import CohortArrays
from vht_federate.errors import CohortError
from vht_federate.privacy.release import Private
from vht_federate.signing.strict_json import read_json

__all__ = ["read_cohort"]

_TABULAR = {"values": np.float32, "outcome": np.float32, "patient": np.int64, "bucket": np.uint8}
_STEPPED = _TABULAR | {"mask": np.uint8, "times": np.float32}


def read_cohort(folder: Path, component: Component, profile: str) -> Private[CohortArrays]:
    """The cohort in ``folder``, which must be one of ``component`` and ``profile``.

    Raises CohortError VHT-COHORT-TENSORS; no message carries a value.
    """
    try:
        digest, tensors = mapped_tensors(folder / "cohort.safetensors")
        manifest = read_json((folder / "manifest.json").read_text())
        declared = tuple(manifest.get(name) for name in ("component", "profile", "inputs", "sha256"))
    except (OSError, ValueError, AttributeError) as error:
        raise _broken("it cannot be read") from error
    chosen = component.profile(profile)
    if declared != (component.name, profile, list(chosen.inputs), digest):
        raise _broken("its manifest names another component, profile, inputs or digest")
    if {name: value.dtype for name, value in tensors.items()} != (_TABULAR if chosen.layout == "tabular" else _STEPPED):
        raise _broken("names or types differ from the contract's")
    arrays = CohortArrays(**tensors)
    if not _coherent(arrays, chosen):
        raise _broken("records, patients and outcomes do not fit together")
    return Private(arrays)


def _coherent(arrays: CohortArrays, profile: Profile) -> bool:
    patient = arrays.patient
    records = len(patient) if patient.ndim == 1 else -1
    shape = (records, *profile.shape)
    stepped = [value for value in (arrays.mask, arrays.times) if value is not None]
    return bool(
        records >= 0
        and all(value.shape == shape for value in (arrays.values, *stepped))
        and arrays.outcome.shape == (records,)
        and arrays.bucket.ndim == 1
        and np.isin(arrays.outcome, (0.0, 1.0)).all()
        and (np.diff(patient) >= 0).all()
        and (records == 0 or (patient[0] >= 0 and patient[-1] < arrays.patients))
        and (arrays.bucket < 100).all()
        and (arrays.mask is None or not len(arrays.mask) or arrays.mask.max() <= 1)
    )


def _broken(why: str) -> CohortError:
    return CohortError(f"the cohort of this visit is not usable: {why}", code="VHT-COHORT-TENSORS")
