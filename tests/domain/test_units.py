"""Units: what measures the same meets, exactly; what does not, never."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.fhir.intake import installed_ports
from vht_federate.domain import ucum
from vht_federate.domain.units import Affine, conversion, is_ucum

AMOUNTS = st.floats(min_value=0.01, max_value=1e4, allow_nan=False)


def way(unit: str, to: str, **more: Any) -> Affine:
    affine = conversion(unit, to, **more)
    assert affine is not None, (unit, to)
    return affine


def test_a_cholesterol_of_5_mmol_per_litre_is_193_mg_per_decilitre() -> None:
    assert way("mmol/L", "mg/dL", molar_mass=386.65)(5.0) == pytest.approx(193.325)
    assert way("umol/L", "mg/dL", molar_mass=113.12)(88.4) == pytest.approx(1.0, abs=1e-3)
    assert way("g/L", "mg/dL", molar_mass=386.65)(1.93325) == pytest.approx(193.325)


@pytest.mark.parametrize(("ifcc", "ngsp"), [(20, 4.0), (42, 6.0), (53, 7.0), (86, 10.0)])
def test_hba1c_follows_the_published_master_equation(ifcc: float, ngsp: float) -> None:
    assert way("mmol/mol", "%", loinc="4548-4")(ifcc) == pytest.approx(ngsp, abs=0.05)
    assert way("%", "mmol/mol", loinc="59261-8")(ngsp) == pytest.approx(ifcc, abs=0.5)


@pytest.mark.parametrize(
    ("unit", "value", "to", "expected"),
    [
        ("[degF]", 98.6, "Cel", 37.0),
        ("Cel", 37.0, "[degF]", 98.6),
        ("K", 310.15, "Cel", 37.0),
        ("Cel", 37.0, "K", 310.15),
        ("[degF]", 98.6, "K", 310.15),
        ("[in_i]", 70.0, "cm", 177.8),
        ("[lb_av]", 150.0, "kg", 68.0388555),
        ("kPa", 16.0, "mm[Hg]", 120.0099),
        ("{beats}/min", 72.0, "/min", 72.0),
        ("{vessels}", 2.0, "1", 2.0),
        ("{score}", 3.0, "{nominal}", 3.0),
        ("mg/dl", 90.0, "mg/dL", 90.0),
        ("10*3/uL", 5.5, "10*9/L", 5.5),
        ("m[IU]/L", 2.5, "u[iU]/mL", 2.5),
        ("mL/s/{1.73_m2}", 1.5, "mL/min/{1.73_m2}", 90.0),
        ("mL/min/{1.73m2}", 90.0, "mL/min/{1.73_m2}", 90.0),
        ("mo", 6.0, "a", 0.5),
    ],
)
def test_a_measurement_keeps_its_meaning_in_the_other_unit(unit: str, value: float, to: str, expected: float) -> None:
    assert way(unit, to)(value) == pytest.approx(expected, rel=1e-5)


@given(AMOUNTS)
def test_a_value_returns_unchanged_from_the_other_unit(amount: float) -> None:
    for unit, to, more in (
        ("mmol/L", "mg/dL", {"molar_mass": 180.16}),
        ("mmol/mol", "%", {"loinc": "59261-8"}),
        ("[degF]", "Cel", {}),
        ("kPa", "mm[Hg]", {}),
    ):
        assert way(to, unit, **more)(way(unit, to, **more)(amount)) == pytest.approx(amount, rel=1e-9, abs=1e-9)
        assert way(unit, to, **more).inverse()(way(unit, to, **more)(amount)) == pytest.approx(amount, abs=1e-9)


@pytest.mark.parametrize(
    ("unit", "to"),
    [
        ("mL/min", "mL/min/{1.73_m2}"),  # a clearance is not normalised to body surface
        ("mg/dL", "mmol/L"),  # not without a molar mass
        ("%", "mmol/mol"),  # not but for HbA1c
        ("%", "mg/g"),
        ("mg/g", "mmol/mol"),
        ("meq/L", "mmol/L"),  # depends on the charge
        ("mosm/L", "mmol/L"),
        ("[iU]/L", "10*9/L"),  # both have the dimension 1/volume
        ("[iU]/L", "U/L"),
        ("/[HPF]", "1"),
        ("/{100_WBC}", "/{WBC}"),
        ("kg", "mm[Hg]"),
        ("'", "min"),  # minutes of arc, which ucumvert takes for minutes
        ("g%", "g"),
        ("dB", "1"),
        ("[pH]", "1"),
        ("deg", "1"),
        ("mg/kg/d", "/d"),
    ],
)
def test_what_does_not_measure_the_same_never_meets(unit: str, to: str) -> None:
    assert conversion(unit, to) is None
    assert conversion(to, unit) is None


def test_a_molar_mass_opens_concentrations_and_nothing_else() -> None:
    assert conversion("mol", "g", molar_mass=180.16) is None
    assert conversion("meq/L", "mg/dL", molar_mass=180.16) is None
    assert conversion("mmol/L", "mm[Hg]", molar_mass=180.16) is None


def test_spellings_outside_ucum_are_not_guessed() -> None:
    for spelled in ("MG/DL", "mgdL", "mmHg", "", " mg/dL", "mg per dL", "IU/L", "(score)", "mg/dL\n", "µg/L"):
        assert not is_ucum(spelled), spelled
        assert conversion(spelled, "mg/dL", molar_mass=386.65) is None
    assert all(map(is_ucum, ("{score}", "{nominal}", "[pH]", "mm[Hg]", "{T-score}", "/[HPF]", "%", "1")))


@pytest.mark.parametrize(
    "hostile",
    [
        "(" * 5000 + "m" + ")" * 5000,
        "10*99999999",
        "m99999999",
        "10*-99999999",
        "m" * 100_000,
        "1" * 64,
        "Ym9/ym9",
        "{" * 60,
    ],
)
def test_a_hostile_unit_costs_nothing_and_says_no(hostile: str) -> None:
    assert conversion(hostile, "mg/dL") is None
    assert conversion(hostile, "1") is None or hostile == "1" * 64
    assert conversion("mg/dL", hostile) is None


@pytest.mark.parametrize(
    ("unit", "value", "ngsp"),
    [
        ("mmol/mol{Hb}", 53, 7.0004),
        ("mmol/mol{HbA1c}", 53, 7.0004),
        ("mmol.mol-1", 53, 7.0004),
        ("umol/mol", 53_000, 7.0004),
        ("%{HemoglobinA1C}", 7.0, 7.0),
        ("%{Hb}", 7.0, 7.0),
        ("10*-2", 7.0, 7.0),
        ("1", 0.07, 7.0),
    ],
)
def test_annotations_and_other_spellings_of_an_hba1c_mean_what_the_plain_one_does(
    unit: str, value: float, ngsp: float
) -> None:
    for code in ("4548-4", "59261-8"):
        assert way(unit, "%", loinc=code)(value) == pytest.approx(ngsp, abs=1e-4)
        assert way(unit, "mmol/mol{Hb}", loinc=code)(value) == pytest.approx((ngsp - 2.152) / 0.09148, abs=1e-3)


@pytest.mark.parametrize("unit", ["{%}", "{percent}", "{ratio}", "{%}{Hb}"])
def test_an_annotation_alone_counts_something_and_is_no_ratio(unit: str) -> None:
    """7 {%} would be 700 %."""
    for to in ("%", "mmol/mol", "[ppm]", "10*-2"):
        assert conversion(unit, to, loinc="4548-4") is None
        assert conversion(to, unit, loinc="4548-4") is None
    assert way(unit, "1") == way("1", unit) == way(unit, "{score}") == Affine(1.0)


@pytest.mark.parametrize(
    ("unit", "to", "same"),
    [
        ("mmol/L{vitamin_B12}", "mmol/L", True),
        ("mg/dL{LDL-C_calc}", "mg/dL", True),
        ("{beats}/min", "/min", True),
        ("mL/min/{1.73_m2}", "mL/min/{1.73m2}", True),
        ("mL/min/{m2}", "mL/min", False),
        ("mL/min/{per_1.73_m2}", "mL/min", False),
        ("mg/{24.h}", "mg", False),
    ],
)
def test_a_digit_in_a_name_is_no_quantity(unit: str, to: str, same: bool) -> None:
    assert conversion(unit, to) == (Affine(1.0) if same else None)


def test_every_installed_port_accepts_its_own_unit_as_it_is() -> None:
    quantities = [port for port in installed_ports() if port.kind == "quantity"]
    assert quantities
    for port in quantities:
        assert port.unit is not None
        assert is_ucum(port.unit)
        assert way(port.unit, port.unit, loinc=port.loinc, molar_mass=port.molar_mass) == Affine(1.0)


def test_equal_units_and_the_command_line_load_no_table() -> None:
    script = (
        "import sys; from vht_federate.domain.units import conversion; import connector.fhir, vht_federate.cli, "
        "connector.cli.node, vht_federate.samples.charts; conversion('mm[Hg]', 'mm[Hg]'); "
        "conversion('mmol/mol', '%', loinc='4548-4'); sys.exit('pint' in sys.modules or 'lark' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


class Definitions:
    """UCUM's own table (ucum-essence), worked out down to base units without pint; mole counts as a base unit."""

    def __init__(self) -> None:
        from ucumvert import get_ucum_parser
        from ucumvert.xml_util import get_base_units, get_units_with_full_definition, root

        self.parser = get_ucum_parser()
        self.atoms = {unit.code_cs: unit for unit in get_units_with_full_definition()}
        self.base = {*get_base_units(), "mol"}
        self.prefixes = {
            node.attrib["Code"]: float(child.attrib["value"])
            for node in root.findall(".//{*}prefix")
            for child in node.findall("{*}value")
        }

    def value(self, code: str) -> tuple[float, dict[str, int]]:
        """Factor and dimension."""
        return self._tree(self.parser.parse(code))

    def _atom(self, code: str) -> tuple[float, dict[str, int]]:
        if code in self.base:
            return 1.0, {code: 1}
        if code in ("10*", "10^"):
            return 10.0, {}
        unit = self.atoms[code]
        factor, dimension = self.value(unit.defining_unit)
        return factor * float(unit.conversion_factor), dimension

    def _tree(self, node: Any) -> tuple[float, dict[str, int]]:
        if not hasattr(node, "children"):
            return (1.0, {})
        parts = node.children
        if node.data == "simple_unit":
            scale = 1.0 if len(parts) == 1 else self.prefixes[str(parts[0])]
            if parts[-1].type == "FACTOR":
                return float(parts[-1]), {}
            factor, dimension = self._atom(str(parts[-1]))
            return scale * factor, dimension
        if node.data == "annotatable":
            return self._times((1.0, {}), self._tree(parts[0]), int(parts[1]))
        if node.data == "main_term" and getattr(parts[0], "type", "") == "DIVIDE":
            return self._times((1.0, {}), self._tree(parts[1]), -1)
        if node.data == "term":
            return self._times(self._tree(parts[0]), self._tree(parts[2]), -1 if parts[1] == "/" else 1)
        return self._tree(parts[0])

    @staticmethod
    def _times(
        left: tuple[float, dict[str, int]], right: tuple[float, dict[str, int]], power: int
    ) -> tuple[float, dict[str, int]]:
        joined = dict(left[1])
        for name, exponent in right[1].items():
            joined[name] = joined.get(name, 0) + power * exponent
        return left[0] * right[0] ** power, {name: exponent for name, exponent in joined.items() if exponent}


def test_every_unit_of_ucum_converts_as_ucum_defines_it_or_not_at_all() -> None:
    definitions = Definitions()
    plain = [unit for unit in definitions.atoms.values() if not unit.is_special and not unit.is_arbitrary]
    groups: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for unit in plain:
        _, dimension = definitions.value(unit.code_cs)
        groups.setdefault(tuple(sorted(dimension.items())), []).append(unit.code_cs)
    checked = 0
    for codes in groups.values():
        anchor = next((code for code in codes if code not in ucum.UNCONVERTED), None)
        for code in codes:
            affine = conversion(code, anchor) if anchor else None
            if affine is None or anchor is None or code == anchor:
                continue
            checked += 1
            expected = definitions.value(code)[0] / definitions.value(anchor)[0]
            assert affine.offset == 0.0
            assert affine.scale == pytest.approx(expected, rel=2e-4), (code, anchor)
    assert checked > 120
    anchors = [next((code for code in codes if code not in ucum.UNCONVERTED), codes[0]) for codes in groups.values()]
    assert all(conversion(first, second) is None for first in anchors for second in anchors if first != second)
    every = [unit.code_cs for unit in definitions.atoms.values()]
    assert all(conversion(code, to) is None for code in ucum.UNCONVERTED for to in every if code != to)
