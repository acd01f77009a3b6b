"""Canonical JSON (RFC 8785) and digests: two parties that hold the same value compute the same bytes."""

import hashlib
from typing import Any

import rfc8785

from vht_federate.errors import InputError

__all__ = ["canonical_bytes", "digest_of", "sha256_hex"]


def canonical_bytes(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON value. Raises InputError for values outside JSON (NaN, bytes, sets)."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, ValueError) as error:
        raise InputError("this value has no canonical JSON form", code="VHT-INPUT-CANONICAL") from error


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of(value: Any) -> str:
    """sha256, in hex, of the canonical JSON of ``value``."""
    return sha256_hex(canonical_bytes(value))
