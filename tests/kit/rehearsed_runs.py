"""Runs of two nodes, rehearsed up to where a test wants to go its own way."""

from pathlib import Path
from typing import Any

import pytest

from vht_federate.errors import VerificationError
from vht_federate.evidence.verify import verify_bundle
from vht_federate.testing.rehearsal import REHEARSED_PLAN, Rehearsal

__all__ = ["NAMES", "NODE", "PLAN", "code_of", "finish", "prepared", "rehearsal"]


PLAN = REHEARSED_PLAN.model_copy(update={"evaluation": None, "cohort": None})


NAMES = ("hospital-1", "hospital-2")


NODE = "hospital-1"


def rehearsal(root: Path, **changes: Any) -> Rehearsal:
    return Rehearsal(root, names=NAMES, plan=PLAN, **changes)


def code_of(played: Rehearsal, folder: Path, needle: str = "") -> str:
    with pytest.raises(VerificationError) as caught:
        verify_bundle(played.bundle(folder), played.trust)
    assert needle in caught.value.message, caught.value.message
    return caught.value.code


def prepared(root: Path, **changes: Any) -> Rehearsal:
    """Negotiated, first round played."""
    played = rehearsal(root, **changes)
    played.status("start")
    played.negotiate()
    played.round("train", 1, NAMES)
    return played


def finish(rehearsal: Rehearsal) -> Rehearsal:
    rehearsal.round("train", 2, NAMES)
    rehearsal.release()
    rehearsal.close()
    rehearsal.status("end")
    return rehearsal
