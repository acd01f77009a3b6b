"""Code systems of conditions, medications and measurements: their addresses, and which codes lie below which.

One system may have several addresses (Germany's moved from DIMDI to BfArM). A code of ICD-10 or ATC covers those below
it: ICD-10 ``E11`` covers ``E11.9``, ``E11.90`` and ``E1190``, ATC ``C09`` covers ``C09AA05``. That holds only between
codes that have their system's form: ``E11.90A`` is no code of ICD-10-GM, whatever it begins with.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType

__all__ = ["CODE_SYSTEMS", "CodeSystem", "Coding", "canonical", "code_system_at", "covers"]

Coding = tuple[str, str]  # (system, code)
_HELD = 65_536


@dataclass(frozen=True)
class CodeSystem:
    """``key`` is its name in our maps. ``read`` gives what is compared of a code, None for what has not its form;
    ``nested``: a code covers every code that begins with it."""

    key: str
    addresses: tuple[str, ...]
    read: Callable[[str], str | None]
    nested: bool = False


def _flat(form: str) -> Callable[[str], str | None]:
    pattern = re.compile(form)
    return lambda code: code if pattern.fullmatch(code) else None


# A dagger, asterisk or exclamation mark says how a code is used beside others, a dash that digits are left open.
_ICD = re.compile(r"([A-Z][0-9]{2})(?:\.?([0-9]{1,2}|[0-9]?-))?[+*!†]?")
_ICD_CM = re.compile(r"([A-Z][0-9][0-9A-Z])(?:\.?([0-9A-Z]{1,4}))?")


def _icd(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    def read(code: str) -> str | None:
        match = pattern.fullmatch(code)
        return match[1] + (match[2] or "").rstrip("-") if match else None

    return read


def _pzn(code: str) -> str | None:
    """Eight digits; the seven of before 2013 have a zero before them."""
    return code.zfill(8) if re.fullmatch("[0-9]{7,8}", code) else None


_DE = "http://fhir.de/CodeSystem"
CODE_SYSTEMS: Mapping[str, CodeSystem] = MappingProxyType(
    {
        system.key: system
        for system in (
            CodeSystem("snomed", ("http://snomed.info/sct",), _flat("[1-9][0-9]{5,17}")),
            CodeSystem("icd-10", ("http://hl7.org/fhir/sid/icd-10",), _icd(_ICD), nested=True),
            CodeSystem(
                "icd-10-gm",
                (f"{_DE}/bfarm/icd-10-gm", f"{_DE}/dimdi/icd-10-gm"),
                _icd(_ICD),
                nested=True,
            ),
            CodeSystem("icd-10-cm", ("http://hl7.org/fhir/sid/icd-10-cm",), _icd(_ICD_CM), nested=True),
            CodeSystem(
                "atc",
                ("http://www.whocc.no/atc", f"{_DE}/bfarm/atc", f"{_DE}/dimdi/atc"),
                _flat("[A-DGHJL-NPRSV](?:[0-9]{2}(?:[A-Z](?:[A-Z](?:[0-9]{2})?)?)?)?"),
                nested=True,
            ),
            CodeSystem("rxnorm", ("http://www.nlm.nih.gov/research/umls/rxnorm",), _flat("[1-9][0-9]{0,7}")),
            CodeSystem("pzn", (f"{_DE}/ifa/pzn",), _pzn),
            CodeSystem("loinc", ("http://loinc.org",), _flat("[0-9]{1,7}-[0-9]")),
        )
    }
)


@cache
def _by_address() -> Mapping[str, CodeSystem]:
    return {address: system for system in CODE_SYSTEMS.values() for address in system.addresses}


def code_system_at(address: str) -> CodeSystem | None:
    """The system that ``address`` names; None for one of a hospital's own, or unknown here."""
    return _by_address().get(address)


@lru_cache(maxsize=_HELD)
def _read(coding: Coding) -> tuple[str, str, bool]:
    """The key or address of its system, what is compared of it, and whether codes below it begin with that."""
    address, code = coding
    system = code_system_at(address)
    if system is None:
        return address, code, False
    compared = system.read(code)
    return (system.key, code, False) if compared is None else (system.key, compared, system.nested)


def canonical(coding: Coding) -> Coding:
    """The same for all spellings of one code: (key or address of its system, what is compared of it)."""
    return _read(coding)[:2]


def covers(coding: Coding, other: Coding) -> bool:
    """Whether ``other`` is ``coding`` in another spelling, or lies below it in its system."""
    (key, code, nested), (other_key, other_code, other_nested) = _read(coding), _read(other)
    return key == other_key and (code == other_code or (nested and other_nested and other_code.startswith(code)))
