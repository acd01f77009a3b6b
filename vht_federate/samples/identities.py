"""Invented identities: what a record says about a person and a node must never let out. Optionally with canaries.

A canary is a unique string in every such place of every patient; whoever finds one outside the node found a leak.
"""

import hashlib
from dataclasses import dataclass, field

__all__ = ["Identity", "Registrar"]

_FAMILIES = (
    *("Almeida", "Andersen", "Bianchi", "Brandt", "Castro", "Dubois", "Eriksen", "Fabre", "Fischer", "Garnier"),
    *("Hansen", "Horvat", "Ivanova", "Jansen", "Kowalska", "Lindqvist", "Marin", "Moreau", "Novak", "Nowak"),
    *("Olsen", "Papadakis", "Petrov", "Ricci", "Romano", "Santos", "Schmid", "Tamm", "Virtanen", "Weber"),
)
_WOMEN = (
    *("Ana", "Birgit", "Chloe", "Daria", "Elena", "Freja", "Greta", "Hanna", "Ines"),
    *("Julia", "Katarina", "Lena", "Marta", "Nora", "Olga", "Petra", "Rosa", "Sofia"),
)
_MEN = (
    *("Anton", "Bruno", "Carlos", "David", "Emil", "Felix", "Georg", "Henrik", "Ivan"),
    *("Jonas", "Karel", "Luca", "Marek", "Nils", "Oskar", "Pavel", "Rui", "Stefan"),
)
_STREETS = ("Ash", "Birch", "Castle", "Dock", "Elm", "Field", "Garden", "Harbour", "Mill", "Orchard", "Park", "River")
_CITIES = ("Aldfeld", "Brunnau", "Corvessa", "Dalmere", "Estrand", "Fonteval", "Granholm", "Hallbruck")
_NOTES = (
    "Patient reports feeling well, no new complaints.",
    "Seen together with a family member who helps with medication.",
    "Advised on diet and daily walking; will return in spring.",
    "Repeat measurement taken after ten minutes of rest.",
    "Works night shifts, measured in the morning after duty.",
)


@dataclass(frozen=True)
class Identity:
    """Every field but ``number`` identifies a person or is free text."""

    number: int
    id: str
    family: str
    given: str
    identifier: str
    street: str
    city: str
    postcode: str
    phone: str
    email: str
    note: str
    unusual_fraction: str  # fraction of a second, six digits: makes one instant of this patient unlike any other


@dataclass
class Registrar:
    """Hands out identities of one hospital; with ``canaries``, unique strings, which it keeps in ``planted``."""

    hospital: str
    prefix: str
    seed: int
    canaries: bool = False
    planted: list[str] = field(default_factory=list)

    def identity(self, number: int, *, male: bool) -> Identity:
        digest = self._digest(number, "person")
        given = (_MEN if male else _WOMEN)[digest[0] % len(_MEN)]
        family, street = _FAMILIES[digest[1] % len(_FAMILIES)], _STREETS[digest[2] % len(_STREETS)]
        serial = int.from_bytes(digest[3:7], "big")
        plain = {
            "id": f"{self.prefix}-{number:06d}",
            "family": family,
            "given": given,
            "identifier": f"{serial % 10**9:09d}",
            "street": f"{street} Street {digest[7] % 180 + 1}",
            "city": _CITIES[digest[8] % len(_CITIES)],
            "postcode": f"{10_000 + serial % 89_999}",
            "phone": f"+999 {serial % 10**8:08d}",
            "email": f"{given}.{family}.{serial % 9973}@mail.example".lower(),
            "note": _NOTES[digest[9] % len(_NOTES)],
        }
        if self.canaries:
            plain = {place: self._canary(number, place) for place in plain}
            plain["email"] = f"{plain['email']}@mail.example"
        fraction = f"{int.from_bytes(digest[10:14], 'big') % 1_000_000:06d}"
        return Identity(number=number, unusual_fraction=fraction, **plain)

    def plant(self, text: str) -> str:
        """Remember ``text`` as planted, where canaries are on; returns it."""
        if self.canaries:
            self.planted.append(text)
        return text

    def _canary(self, number: int, place: str) -> str:
        return self.plant(f"CANARY-{self._digest(number, place).hex()[:14].upper()}")

    def _digest(self, number: int, place: str) -> bytes:
        return hashlib.blake2b(f"{self.seed}|{self.hospital}|{number}|{place}".encode(), digest_size=16).digest()
