"""UCUM codes read by ucumvert and weighed by pint: when two of them measure the same thing, and by what affine map.

Case-sensitive UCUM 2.2. Loading takes about 0.7 s, so it waits for the first code that needs it; every code is then
parsed once. Stricter than dimensions alone, because a wrong map would be silent:

- Arbitrary units (``[iU]``, ``[HPF]``, …), angles, equivalents and osmoles convert only among their own kind.
- A ratio keeps what it is a ratio of: ``mg/g``, ``mmol/mol`` and ``%`` do not meet.
- Annotations in braces mean nothing (UCUM, 6) and are dropped, but one that is a quantity itself is a part of the unit:
  ``mL/min/{1.73_m2}`` is normalised to body surface and is not ``mL/min``. The digit in ``%{HbA1c}`` is a name's.
- Logarithmic and other special units, and the few atoms that ucumvert maps to something else than UCUM's own
  definition, are accepted as themselves and never converted. Celsius, Fahrenheit and kelvin are affine.
"""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from math import isfinite
from typing import Any

__all__ = [
    "CODE_LIMIT",
    "UNCONVERTED",
    "Affine",
    "affine",
    "is_quantity",
    "is_ucum",
    "mass_to_substance",
    "without_annotations",
]

CODE_LIMIT = 64  # characters; a longer code is no unit, whatever it parses to
CACHED = 16_384
_EXPONENT_LIMIT = 30

# Where ucumvert 0.3.2 and UCUM's definition disagree; [LPF] and the [hp'_…] are not numbers.
UNCONVERTED = frozenset(
    {
        *(
            "'",
            "''",
            "Mx",
            "G",
            "Oe",
            "Gb",
            "g%",
            "lm",
            "lx",
            "ph",
            "[LPF]",
            "[Cal]",
            "[Btu]",
            "[in_i'H2O]",
            "[in_i'Hg]",
        ),
        *("[cft_i]", "[cyd_i]", "[rd_br]", "[ch_br]", "[lk_br]"),
    }
)
_SPECIAL = re.compile(r"B|B\[.*|Np|bit_s|%\[slope\]|\[(?:p'diop|hp'_.|degRe|pH|m/s2/Hz\^\(1/2\))\]")
_PURE_NUMBERS = frozenset({"percent", "ppm", "ppth", "ppb", "pptr", "_10", "dimensionless"})
_KINDS_OF_AMOUNT = frozenset({"equivalents", "osmole"})
_ANNOTATION = re.compile(r"\{([^{}]*)\}")
_AFTER_A_UNIT = re.compile(r"(?<=[^./({}])\{[^{}]*\}")
# A number, or an area or a volume, and no digit of a name.
_QUANTITY = re.compile(r"(?<![A-Za-z0-9])(?:[0-9]|[cdkm]?m\^?[23](?![A-Za-z0-9]))")


@dataclass(frozen=True)
class Affine:
    """``x -> scale * x + offset``."""

    scale: float
    offset: float = 0.0

    def __call__(self, value: float) -> float:
        return self.scale * value + self.offset

    def then(self, onward: "Affine") -> "Affine":
        """This map, and ``onward`` after it."""
        return Affine(float(f"{onward.scale * self.scale:.15g}"), onward(self.offset))

    def inverse(self) -> "Affine":
        return Affine(1.0 / self.scale, -self.offset / self.scale)


@dataclass(frozen=True)
class _Unit:
    """``kind`` must be equal for two units to meet."""

    quantity: Any
    dimension: Mapping[str, Any]
    kind: Hashable


class _Engine:
    """A parser and a registry of our own: the application's registry stays as it is."""

    @cached_property
    def _parser(self) -> Any:
        from ucumvert import get_ucum_parser

        return get_ucum_parser()

    @cached_property
    def _registry(self) -> Any:
        import pint

        registry: Any = pint.UnitRegistry()
        registry.load_definitions(str(files("ucumvert") / "pint_ucum_defs.txt"))
        return registry

    @cached_property
    def _transformer(self) -> Any:
        from ucumvert import UcumToPintTransformer

        return UcumToPintTransformer(ureg=self._registry)

    def tree(self, code: str) -> Any:
        """None for what is no UCUM code."""
        from lark.exceptions import LarkError

        try:
            return self._parser.parse(code)
        except LarkError:
            return None

    def unit(self, code: str) -> _Unit | None:
        """None for what is no UCUM code, or one that only equals itself."""
        from lark.exceptions import LarkError
        from pint.errors import PintError

        tree = self.tree(code)
        if tree is None or any(_unconverted(str(token)) for token in tree.scan_values(lambda _: True)):
            return None
        try:
            transformed = self._transformer.transform(tree)
            # of an annotation alone there is nothing but its token: a pure number
            quantity = transformed if hasattr(transformed, "units") else self._registry.Quantity(1)
            if any(abs(exponent) > _EXPONENT_LIMIT for _, exponent in quantity.unit_items()):
                return None
            return _Unit(quantity, dict(quantity.dimensionality), self._kind(quantity, code))
        except (LarkError, PintError, ArithmeticError):
            return None

    def _kind(self, quantity: Any, code: str) -> Hashable:
        counted, parts = [], set()
        for spelled, exponent in quantity.unit_items():
            [(_, name, _), *_] = self._registry.parse_unit_name(spelled)
            dimension = self._registry.get_dimensionality(spelled)
            parts |= set(dimension)
            if name in _KINDS_OF_AMOUNT or (not dimension and name not in _PURE_NUMBERS):
                counted.append((name, exponent))
        cancelled = parts - set(quantity.dimensionality)
        return frozenset(counted), frozenset(cancelled), _normalisation(code)

    def map(self, source: _Unit, target: _Unit) -> Affine | None:
        """None where the map is beyond what a float can hold."""
        here, there = source.quantity, target.quantity

        def turned(value: float) -> float:
            moved = self._registry.Quantity(value * here.magnitude, here.units).to(there.units)
            return float(moved.magnitude / there.magnitude)

        try:
            offset = turned(0.0)
            scale = turned(1.0) if offset == 0.0 else (turned(1000.0) - offset) / 1000.0
        except ArithmeticError:
            return None
        if not (isfinite(scale) and isfinite(offset) and scale):
            return None
        return Affine(float(f"{scale:.15g}"), float(f"{offset:.13g}"))


_engine = cache(_Engine)


def _unconverted(token: str) -> bool:
    return token in UNCONVERTED or _SPECIAL.fullmatch(token) is not None


def _normalisation(code: str) -> tuple[str, ...]:
    """Annotations that are quantities, in one spelling: ``{1.73_m2}`` and ``{1.73m2}`` are the same."""
    annotations = (text for text in _ANNOTATION.findall(code) if is_quantity(text))
    return tuple(sorted(re.sub(r"[_\s]", "", text).lower() for text in annotations))


def is_quantity(annotation: str) -> bool:
    """Whether the text of an annotation is a quantity, and so a part of the unit."""
    return any(_QUANTITY.search(part) for part in re.split(r"[_\s]", annotation))


def without_annotations(code: str) -> str:
    """``code`` without the annotations that follow a unit and mean nothing: ``mmol/mol{Hb}`` is ``mmol/mol``."""
    return _AFTER_A_UNIT.sub(lambda match: match[0] if is_quantity(match[0][1:-1]) else "", code)


@lru_cache(maxsize=CACHED)
def _unit(code: str) -> _Unit | None:
    return _engine().unit(code) if len(code) <= CODE_LIMIT else None


@lru_cache(maxsize=CACHED)
def is_ucum(code: str) -> bool:
    """Whether ``code`` is a UCUM unit, convertible or not."""
    return len(code) <= CODE_LIMIT and _engine().tree(code) is not None


@lru_cache(maxsize=CACHED)
def affine(code: str, to: str) -> Affine | None:
    """The map from one UCUM unit to another; None where they do not measure the same, or are no units."""
    if code == to:
        return Affine(1.0) if is_ucum(code) else None
    source, target = _unit(code), _unit(to)
    if source is None or target is None or (source.dimension, source.kind) != (target.dimension, target.kind):
        return None
    return _engine().map(source, target)


def mass_to_substance(code: str, to: str, molar_mass: float) -> Affine | None:
    """From a mass to a substance concentration or back: ``molar_mass`` in g/mol; None for any other two units."""
    for first, second, factor in (("g/L", "mol/L", 1.0 / molar_mass), ("mol/L", "g/L", molar_mass)):
        there, onward = affine(code, first), affine(second, to)
        if there is not None and onward is not None:
            return Affine(float(f"{there.scale * factor * onward.scale:.15g}"))
    return None
