"""The fixed public split: which patients train and which test. Anyone who knows a Patient.id can recompute it.

A person whom a hospital knows by several ids has the largest of their buckets (``connector.fhir.persons``).
"""

import hashlib

__all__ = ["TEST_BUCKETS", "bucket_of", "is_test"]

TEST_BUCKETS = 33  # of 100


def bucket_of(patient_id: str) -> int:
    """0..99, from sha256 of a fixed prefix and the FHIR Patient.id (no secret: the rule is public)."""
    return int.from_bytes(hashlib.sha256(b"vht-split-1|" + patient_id.encode()).digest()[:8], "big") % 100


def is_test(bucket: int) -> bool:
    return bucket < TEST_BUCKETS
