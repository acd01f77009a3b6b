"""A signed synthetic cohort: the request that makes one, the result, and the seal over its files.

data.csv, data.parquet     the rows; every column is described in the codebook
fhir/*.ndjson              the same rows as FHIR R4, every resource marked as synthetic test data
codebook.json              public bins, levels and units
marginals.safetensors      the sums of the nodes' noisy tables, all that the rows were drawn from
sdv_metadata.json, sdmetrics_report.json, data_card.md, privacy_statement.json
manifest.json, manifest.jws
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from vht_federate.components.contract import Component
from vht_federate.domain.plan import StudyPlan
from vht_federate.signing.keys import PublicKey, SigningKey
from vht_federate.signing.signed_manifest import Sealed, seal, unseal

__all__ = [
    "ALLOWED",
    "FHIR_TYPES",
    "PROVENANCE_TAG",
    "TEST_DATA_TAG",
    "TYP",
    "CohortRequest",
    "CohortResult",
    "seal_cohort",
    "verify_cohort",
]

TYP = "vht-cohort+jwt"
FHIR_TYPES = ("Patient", "Observation", "Condition", "MedicationRequest")
_FLAT = ("data.csv", "data.parquet", "codebook.json", "marginals.safetensors", "sdv_metadata.json")
_ABOUT = ("sdmetrics_report.json", "data_card.md", "privacy_statement.json")
REQUIRED = (*_FLAT, *_ABOUT, "fhir/Patient.ndjson")
ALLOWED = (*(name.replace(".", r"\.") for name in (*_FLAT, *_ABOUT)), rf"fhir/({'|'.join(FHIR_TYPES)})\.ndjson")

# Both stand in meta of every resource of a synthetic cohort; the platform refuses FHIR without them.
TEST_DATA_TAG = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "HTEST"}
PROVENANCE_TAG = {"system": "urn:vht:tag", "code": "synthetic"}


@dataclass(frozen=True, repr=False)
class CohortRequest:
    """Everything a cohort maker needs. ``one_way`` and ``two_way`` are the nodes' noisy tables (safetensors bytes) by
    node name, from rounds 1 and 2 of the job ``marginals``; a node may have answered round 1 only."""

    study_id: str
    permit_id: str
    component: Component
    component_digest: str
    profile: str
    plan: StudyPlan
    codebook: Mapping[str, Any]
    one_way: Mapping[str, bytes]
    two_way: Mapping[str, bytes]
    statement: dict[str, Any]
    created_at: datetime
    out: Path
    key: SigningKey
    license: str = "CC-BY-4.0"


@dataclass(frozen=True)
class CohortResult:
    """A sealed cohort. ``sha256`` is the digest of its manifest; ``epsilon`` its own share of the study's."""

    folder: Path
    sha256: str
    rows: int
    epsilon: float
    delta: float
    quality: dict[str, Any] = field(default_factory=dict)


def seal_cohort(folder: Path, facts: dict[str, Any], key: SigningKey) -> Sealed:
    return seal(folder, {"kind": "cohort", **facts}, key, typ=TYP, allowed=ALLOWED)


def verify_cohort(folder: Path, key: PublicKey) -> Sealed:
    """Check the seal and every file. Raises VerificationError naming the file."""
    return unseal(folder, key, typ=TYP, allowed=ALLOWED, required=REQUIRED)
