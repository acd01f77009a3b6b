"""``Patient.link``: which Patient resources are of one human, as FHIR R4 says it from either side.

``replaces`` on the record that stands and ``replaced-by`` on the one that gave way say the same. ``seealso`` and
``refer`` name a record beside this one that stays in use (a RelatedPerson, another index): they join nothing.
"""

from typing import Any, NamedTuple

from connector.fhir.typed_elements import Node, code, member, members, text
from vht_federate.domain.references import patient_id_of

__all__ = ["Link", "read_links"]

REPLACES, REPLACED_BY = "replaces", "replaced-by"


class Link(NamedTuple):
    """Ids of two Patients of one human: ``survivor`` is the one in use."""

    survivor: str
    replaced: str


def read_links(patient: Node, patient_id: str) -> tuple[tuple[Link, ...], bool]:
    """What ``patient`` says of itself and others, each once; and whether it can be used.

    It cannot where it was replaced and the reference names nobody that can be known (an identifier alone): two such
    records may be of one human, and nobody could tell.
    """
    links: dict[Link, None] = {}
    usable = True
    for element in members(patient, "link", "Patient"):
        kind = code(element, "type", "Patient.link")
        if kind not in (REPLACES, REPLACED_BY):
            continue
        other = _patient(element)
        if other is None:
            usable &= kind == REPLACES
        elif other != patient_id:
            links[Link(patient_id, other) if kind == REPLACES else Link(other, patient_id)] = None
    return tuple(links), usable


def _patient(link: dict[str, Any]) -> str | None:
    reference = member(link, "other", "Patient.link")
    target = text(reference, "reference", "Patient.link.other") if reference else None
    return patient_id_of(target) if target else None
