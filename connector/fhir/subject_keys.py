"""Pseudonyms at the door: what a FHIR id becomes inside the node.

Keyed under a secret that only the node holds (HMAC-SHA256 for patients; keyed BLAKE2b, RFC 7693, for the many
resources): equal ids stay equal, and nobody without the key can go back or test a guess.
"""

import hashlib
import hmac
import re

__all__ = ["content_key", "resource_key", "subject_key"]

ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")  # FHIR R4 datatypes: id


def subject_key(node_key: bytes, patient_id: str) -> str:
    """64 hex digits that stand for a patient in this node's store."""
    return hmac.digest(node_key, b"Patient/" + patient_id.encode(), "sha256").hex()


def resource_key(node_key: bytes, resource_type: str, resource_id: str) -> str:
    """32 hex digits that stand for one resource in this node's store."""
    name = f"{resource_type}/{resource_id}".encode()
    return hashlib.blake2b(name, key=node_key, digest_size=16, person=b"resource").hexdigest()


def content_key(node_key: bytes, content: bytes) -> str:
    """A keyed digest of a resource's content: tells a repetition from a contradiction, and nothing else."""
    return hashlib.blake2b(content, key=node_key, digest_size=16, person=b"content").hexdigest()
