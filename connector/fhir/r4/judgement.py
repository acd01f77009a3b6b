"""The judgement of every line at intake: quickly where all is well, carefully where something is not."""

from collections.abc import Callable
from functools import cache
from typing import Any

from connector.fhir.r4.conformance import first_fault, has_duplicate_key
from connector.fhir.r4.strict import Strict
from connector.fhir.typed_elements import Quarantine

__all__ = ["judge"]

_JUDGED = ("Patient", "Observation", "Condition", "MedicationRequest", "Encounter", "Medication")


@cache
def _passes() -> Callable[[bytes], bool]:
    return Strict(_JUDGED).passes


def judge(resource: dict[str, Any], content: bytes) -> None:
    """Raises Quarantine with the reason and the path of the first thing in which ``resource``, parsed from
    ``content``, does not keep FHIR R4 (``connector.fhir.r4.conformance``)."""
    if _passes()(content):
        return
    try:
        fault = first_fault(resource)
    except RecursionError:
        raise Quarantine("nested-too-deep", "") from None
    if fault is not None:
        raise Quarantine(fault.reason, fault.path)
    if has_duplicate_key(content):
        raise Quarantine("duplicate-key", str(resource["resourceType"]))
