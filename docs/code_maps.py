"""The page of the concept maps that ship, written from the maps themselves."""

from collections.abc import Iterator, Mapping

from connector.fhir.codes import CODE_SYSTEMS, Concept, ConceptMap, shipped_maps

__all__ = ["code_maps_page"]

INTRO = """# Code maps: which codes mean the same

A component's port names codes of one system; a hospital's data may hold another. A node reads both, by these maps and
by its own: the rule, and the form of a map, are in [FHIR](fhir.md#codes). Each map's sha256 stands in the evidence of
every cohort (`cohort.built`), and what was read through it in the cohort's manifest.

## Systems

| name in a map | addresses in FHIR | a code covers those below it |
|---|---|---|"""


def code_maps_page(note: str) -> str:
    """``note`` says who writes the page."""
    return (
        "\n".join([note + INTRO, *_systems(), *(line for code_map in shipped_maps() for line in _map(code_map))]) + "\n"
    )


def _systems() -> Iterator[str]:
    for system in CODE_SYSTEMS.values():
        addresses = "<br>".join(f"`{address}`" for address in system.addresses)
        yield f"| `{system.key}` | {addresses} | {'yes' if system.nested else 'no'} |"


def _map(code_map: ConceptMap) -> Iterator[str]:
    yield ""
    yield f"## {code_map.name}: {code_map.title}"
    yield ""
    yield f"Version {code_map.version}. {code_map.licence} Sources: {', '.join(f'<{one}>' for one in code_map.source)}."
    yield ""
    yield "| concept | the whole of it | belongs to it as well |"
    yield "|---|---|---|"
    for concept in code_map.concept.values():
        yield _row(concept)


def _row(concept: Concept) -> str:
    return f"| {concept.title} | {_codes(concept.codes)} | {_codes(concept.within)} |"


def _codes(by_system: Mapping[str, tuple[str, ...]]) -> str:
    return "<br>".join(f"{key} {', '.join(f'`{code}`' for code in codes)}" for key, codes in by_system.items())
