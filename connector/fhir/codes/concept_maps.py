"""Concept maps: which codes of different systems mean the same, as files that name their source and licence.

Those that ship are ``maps/*.toml`` beside this file; a hospital lays its own into a folder of its node, as TOML
of the same form or as CSV (``hospital_maps.py``). A map holds concepts, mappings, or both:

    [concept.NAME]   ``codes``: in each system, the codes that together are the concept; ``within``: further codes
                     that belong to it, but do not make it up
    [[mapping]]      ``codes`` of ``system`` each mean ``means`` (``SYSTEM|CODE``), or something narrower
"""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from connector.fhir.codes.code_systems import CODE_SYSTEMS, Coding, covers
from vht_federate.errors import InputError
from vht_federate.signing.canonical import sha256_hex

__all__ = ["Concept", "ConceptMap", "Mapping", "invalid_map", "parse_concept_map", "shipped_maps"]

_STRICT = ConfigDict(extra="forbid", frozen=True)
Text = Annotated[str, Field(min_length=1, max_length=2000)]
Code = Annotated[str, Field(pattern=r"^\S+( \S+)*$", max_length=256)]
Address = Annotated[str, Field(pattern=r"^[^\s|]+$", max_length=512)]
CodesBySystem = dict[str, tuple[Code, ...]]


class Concept(BaseModel):
    """One clinical meaning, in several systems."""

    model_config = _STRICT

    title: Text
    codes: CodesBySystem = Field(min_length=2)
    within: CodesBySystem = {}
    source: tuple[Text, ...] = ()

    @field_validator("codes", "within")
    @classmethod
    def _well_formed(cls, by_system: CodesBySystem) -> CodesBySystem:
        for key, codes in by_system.items():
            if key not in CODE_SYSTEMS:
                raise ValueError(f"a system is one of {', '.join(CODE_SYSTEMS)}")
            if not codes or any(CODE_SYSTEMS[key].read(code) is None for code in codes):
                raise ValueError(f"a system lists codes, each of its form ({key})")
        return by_system

    @property
    def members(self) -> tuple[Coding, ...]:
        """Every code that belongs to it; those below them do, too."""
        return tuple(coding for by_system in (self.codes, self.within) for coding in _codings(by_system))

    def meant_by(self, codings: tuple[Coding, ...]) -> bool:
        """Whether ``codings`` cover the whole of it, in one system at least."""
        return any(
            all(any(covers(coding, part) for coding in codings) for part in _codings({key: codes}))
            for key, codes in self.codes.items()
        )


def _codings(by_system: CodesBySystem) -> list[Coding]:
    return [(CODE_SYSTEMS[key].addresses[0], code) for key, codes in by_system.items() for code in codes]


class Mapping(BaseModel):
    """Each of ``codes`` of ``system`` means ``means``, or something narrower."""

    model_config = _STRICT

    system: Address
    codes: tuple[Code, ...] = Field(min_length=1)
    means: Annotated[str, Field(pattern=r"^[^\s|]+\|\S+( \S+)*$", max_length=768)]

    @property
    def meaning(self) -> Coding:
        system, _, code = self.means.partition("|")
        return system, code


class ConceptMap(BaseModel):
    """One file. ``sha256`` is of its bytes, ``own``: the hospital's, not one that ships."""

    model_config = _STRICT

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    sha256: str
    own: bool = False
    title: Text
    version: Text
    licence: Text
    source: tuple[Text, ...] = Field(min_length=1)
    concept: dict[str, Concept] = {}
    mapping: tuple[Mapping, ...] = ()

    @model_validator(mode="after")
    def _not_empty(self) -> "ConceptMap":
        if not self.concept and not self.mapping:
            raise ValueError("a map holds a concept or a mapping")
        return self


def invalid_map(name: str, what: str) -> InputError:
    """VHT-INPUT-CODE-MAP: of a file by its name, with what is wrong where."""
    return InputError(
        f"code map {name}: {what}", code="VHT-INPUT-CODE-MAP", hint="docs/reference/fhir.md has the form of a code map"
    )


def parse_concept_map(content: bytes, file_name: str, *, own: bool) -> ConceptMap:
    """The map in a TOML file. Raises InputError VHT-INPUT-CODE-MAP, which names the fields and no value."""
    try:
        read = tomllib.loads(content.decode())
    except ValueError as error:
        raise invalid_map(file_name, f"is not TOML ({str(error).splitlines()[0]})") from error
    given = {"name": file_name.rpartition(".")[0], "sha256": sha256_hex(content), "own": own}
    if clash := sorted(given.keys() & read.keys()):
        raise invalid_map(file_name, f"{', '.join(clash)} is not for the file to say")
    try:
        return ConceptMap.model_validate({**read, **given})
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in error.errors())
        raise invalid_map(file_name, f"does not fit at {places}") from error


@cache
def shipped_maps() -> tuple[ConceptMap, ...]:
    """Every map that ships, by name."""
    folder = files("connector.fhir.codes") / "maps"
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".toml")), key=lambda path: path.name)
    return tuple(parse_concept_map(path.read_bytes(), path.name, own=False) for path in paths)
