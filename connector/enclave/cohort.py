"""Reads a visit's tensors and believes nothing about them."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from vht_federate.components.contract import Component
from vht_federate.components.job import CohortArrays
from vht_federate.errors import CohortError
from vht_federate.evidence.canonical import sha256_hex
from vht_federate.privacy.release import Private

__all__ = ["read_cohort"]

_KINDS = {"values": (np.float32, 2), "outcome": (np.float32, 1), "patient": (np.int64, 1), "bucket": (np.uint8, 1)}


def read_cohort(folder: Path, component: Component, profile: str) -> Private[CohortArrays]:
    """The cohort in ``folder``, which must be one of ``component`` and ``profile``.

    Raises CohortError VHT-COHORT-TENSORS; no message carries a value.
    """
    try:
        raw = (folder / "cohort.safetensors").read_bytes()
        manifest = json.loads((folder / "manifest.json").read_text())
        tensors = load(raw)
    except (OSError, ValueError, SafetensorError) as error:
        raise _broken("it cannot be read") from error
    expected = [port.name for port in component.inputs(profile)]
    named = (manifest.get("component"), manifest.get("profile"), manifest.get("inputs"), manifest.get("sha256"))
    if named != (component.name, profile, expected, sha256_hex(raw)):
        raise _broken("its manifest names another component, profile, inputs or digest")
    kinds = {name: (value.dtype.type, value.ndim) for name, value in tensors.items()}
    if kinds != _KINDS:
        raise _broken("names, types or dimensions differ from the contract's")
    arrays = CohortArrays(**tensors)
    if not _coherent(arrays, len(expected)):
        raise _broken("records, patients and outcomes do not fit together")
    return Private(arrays)


def _coherent(arrays: CohortArrays, inputs: int) -> bool:
    records, patient = len(arrays.values), arrays.patient
    return bool(
        arrays.values.shape == (records, inputs)
        and arrays.outcome.shape == patient.shape == (records,)
        and np.isin(arrays.outcome, (0.0, 1.0)).all()
        and (np.diff(patient) >= 0).all()
        and (records == 0 or (patient[0] >= 0 and patient[-1] < arrays.patients))
        and (arrays.bucket < 100).all()
    )


def _broken(why: str) -> CohortError:
    return CohortError(f"the cohort of this visit is not usable: {why}", code="VHT-COHORT-TENSORS")
