"""All code maps in force at a node, and the one rule by which a code in the data stands for a code that is asked for.

A held coding is read for those wanted where one of these holds:

1. it is one of them, in any spelling, or lies below one in its own system (``code_systems.covers``);
2. those wanted cover the whole of a concept, in one system, and it belongs to that concept;
3. a mapping says that it means a coding for which 1 or 2 holds.

Nothing else is guessed: a code that is part of a concept does not bring in the whole.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from connector.fhir.codes.code_systems import Coding, canonical, code_system_at, covers
from connector.fhir.codes.concept_maps import Concept, ConceptMap, invalid_map, shipped_maps
from connector.fhir.codes.hospital_maps import read_hospital_maps

__all__ = ["CodeMaps", "Through", "read_code_maps"]

Through = tuple[str, ...]  # names of the maps by which a code is read; none: by its own system alone


@dataclass(frozen=True)
class CodeMaps:
    """``maps`` in their order of names; what one says holds beside what others say."""

    maps: tuple[ConceptMap, ...] = ()

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of each map, by name: which rules were in force, whatever the data hold."""
        return {code_map.name: code_map.sha256 for code_map in self.maps}

    @cached_property
    def _concepts(self) -> tuple[tuple[str, Concept], ...]:
        return tuple((code_map.name, concept) for code_map in self.maps for concept in code_map.concept.values())

    @cached_property
    def _meanings(self) -> dict[Coding, list[tuple[str, Coding]]]:
        """What mappings say of a code, by its canonical spelling: (map, coding)."""
        meanings: dict[Coding, list[tuple[str, Coding]]] = {}
        for code_map in self.maps:
            for mapping in code_map.mapping:
                for code in mapping.codes:
                    said = meanings.setdefault(canonical((mapping.system, code)), [])
                    said.append((code_map.name, mapping.meaning))
        return meanings

    def may_widen(self, wanted: Collection[Coding]) -> bool:
        """Whether any coding beside ``wanted`` could be read for them."""
        systems = [code_system_at(address) for address, _ in wanted]
        spelled = any(system is not None and (system.nested or len(system.addresses) > 1) for system in systems)
        return bool(wanted) and (spelled or bool(self._meanings) or bool(self._meant(tuple(wanted))))

    def read_for(self, wanted: Collection[Coding], held: Iterable[Coding]) -> dict[Coding, Through]:
        """Those of ``held`` that are read for ``wanted``, each with the maps by which it is."""
        asked, meant = tuple(wanted), self._meant(tuple(wanted))

        def through(coding: Coding) -> Through | None:
            if any(covers(one, coding) for one in asked):
                return ()
            for name, members in meant:
                if any(covers(member, coding) for member in members):
                    return (name,)
            return None

        read: dict[Coding, Through] = {}
        for coding in held:
            found = through(coding)
            for name, meaning in () if found is not None else self._meanings.get(canonical(coding), ()):
                further = through(meaning)
                if further is not None:
                    found = tuple(dict.fromkeys((name, *further)))
                    break
            if found is not None:
                read[coding] = found
        return read

    def know(self, coding: Coding) -> bool:
        """Whether any map says something of ``coding``."""
        if canonical(coding) in self._meanings:
            return True
        return any(covers(member, coding) for _, concept in self._concepts for member in concept.members)

    def _meant(self, wanted: tuple[Coding, ...]) -> list[tuple[str, tuple[Coding, ...]]]:
        return [(name, concept.members) for name, concept in self._concepts if concept.meant_by(wanted)]


def read_code_maps(folder: Path | None = None) -> CodeMaps:
    """The maps that ship, and the hospital's own in ``folder``.

    Raises InputError VHT-INPUT-CODE-MAP for one that cannot be read, or has the name of another.
    """
    own = read_hospital_maps(folder) if folder is not None else ()
    maps = (*shipped_maps(), *own)
    names = [code_map.name for code_map in maps]
    for code_map in own:
        if names.count(code_map.name) > 1:
            raise invalid_map(code_map.name, "another map has this name")
    return CodeMaps(maps)
