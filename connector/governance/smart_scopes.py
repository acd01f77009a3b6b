"""SMART scopes of backend services: ``system/*.rs``, ``system/Observation.rs``, and their older spelling ``.read``."""

import re

from connector.fhir.resources import TABLES
from vht_federate.errors import InputError

__all__ = ["EVERYTHING", "granted", "read_scope", "spelled"]

EVERYTHING = frozenset(TABLES)
_SCOPE = re.compile(r"system/(\*|[A-Z][A-Za-z]{1,63})\.(rs|read)")


def read_scope(scope: str) -> frozenset[str]:
    """The resource types that ``scope`` opens. Raises InputError VHT-INPUT-SCOPE for any word that is not of these."""
    types: set[str] = set()
    for word in scope.split():
        match = _SCOPE.fullmatch(word)
        if not match or (match[1] != "*" and match[1] not in EVERYTHING):
            raise InputError(
                "a scope is not one of those that this API has",
                code="VHT-INPUT-SCOPE",
                hint=f"system/*.rs, or system/TYPE.rs of {', '.join(EVERYTHING)}",
            )
        types |= EVERYTHING if match[1] == "*" else {match[1]}
    return frozenset(types)


def granted(registered: str, asked: str) -> frozenset[str]:
    """What both open. A word that was asked and that this API does not know opens nothing (RFC 6749, 3.3)."""
    types = {match[1] for word in asked.split() if (match := _SCOPE.fullmatch(word))}
    wanted = EVERYTHING if "*" in types else EVERYTHING & types
    return read_scope(registered) & wanted


def spelled(types: frozenset[str]) -> str:
    return "system/*.rs" if types == EVERYTHING else " ".join(f"system/{kind}.rs" for kind in sorted(types))
