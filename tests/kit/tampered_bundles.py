"""Bundles that somebody changed: how the verification fails, and a manifest that the coordinator signs anew."""

import json
from pathlib import Path

import pytest

from vht_federate.errors import VerificationError
from vht_federate.evidence.bundle import ALLOWED, BUNDLE_TYP
from vht_federate.evidence.verify import verify_bundle
from vht_federate.signing.keys import SigningKey
from vht_federate.signing.signed_manifest import seal
from vht_federate.testing.rehearsal import Rehearsal

__all__ = ["FILE", "NODE", "failure", "resealed"]


NODE = "hospital-2"
FILE = f"nodes/{NODE}.json"


def failure(bundle: Path, played: Rehearsal) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        verify_bundle(bundle, played.trust)
    assert caught.value.exit_code == 4
    assert caught.value.code.startswith("VHT-VERIFY")
    return caught.value


def resealed(bundle: Path, played: Rehearsal, key: SigningKey | None = None) -> Path:
    """What somebody with the coordinator's key can do: a fresh manifest over whatever lies there."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    facts = {name: manifest[name] for name in ("kind", "study_id", "permit_id", "created_at")}
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.jws").unlink()
    seal(bundle, facts, key or played.coordinator, typ=BUNDLE_TYP, allowed=ALLOWED)
    return bundle
