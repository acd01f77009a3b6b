"""What a Medication is: its code, or that of the one substance in it. It says nothing of any patient."""

from connector.fhir.typed_elements import Coding, Node, Quarantine, boolean, code, codings, member, members, text

__all__ = ["MISTAKEN", "contained_medication", "medication_codings", "medication_status"]

MISTAKEN = "entered-in-error"
_STATUS = frozenset({"active", "inactive", MISTAKEN})


def medication_status(node: Node) -> str | None:
    """Raises Quarantine ``code`` for a status that R4 does not have."""
    status = code(node, "status", "Medication")
    if status is not None and status not in _STATUS:
        raise Quarantine("code", "Medication.status")
    return status


def medication_codings(node: Node) -> list[Coding]:
    """The codings of ``Medication.code``. Without one, those of its only active ingredient: of several, none of them
    alone is the medication. Nothing of a Medication that was entered in error."""
    if medication_status(node) == MISTAKEN:
        return []
    own = codings(member(node, "code", "Medication"), "Medication.code")
    return own or _only_ingredient(node)


def _only_ingredient(node: Node) -> list[Coding]:
    where = "Medication.ingredient"
    ingredients = [(boolean(part, "isActive", where), part) for part in members(node, "ingredient", "Medication")]
    # where none is said to be active, those of which nothing is said
    active = [part for is_active, part in ingredients if is_active] or [p for says, p in ingredients if says is None]
    if len(active) != 1:
        return []
    return codings(member(active[0], "itemCodeableConcept", where), f"{where}.itemCodeableConcept")


def contained_medication(node: Node, reference: str, where: str) -> Node | None:
    """The Medication within resource ``node`` that ``reference`` (``#id``) names (R4, 2.3.0.1); None without it."""
    for resource in members(node, "contained", where):
        if text(resource, "id", f"{where}.contained") == reference[1:] and resource.get("resourceType") == "Medication":
            return resource
    return None
