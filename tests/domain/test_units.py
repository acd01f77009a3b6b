"""Units: exact maps, closed tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.fhir.intake import installed_ports
from vht_federate.domain.units import KNOWN_UNITS, accepted_units

AMOUNTS = st.floats(min_value=0.01, max_value=1e4, allow_nan=False)


def test_a_cholesterol_of_5_mmol_per_litre_is_193_mg_per_decilitre() -> None:
    to_mg_dl = accepted_units("mg/dL", molar_mass=386.65)
    assert to_mg_dl["mmol/L"](5.0) == pytest.approx(193.325)
    assert to_mg_dl["g/L"](1.93325) == pytest.approx(193.325)


@pytest.mark.parametrize(("ifcc", "ngsp"), [(20, 4.0), (42, 6.0), (53, 7.0), (86, 10.0)])
def test_hba1c_follows_the_published_master_equation(ifcc: float, ngsp: float) -> None:
    assert accepted_units("%", loinc="4548-4")["mmol/mol"](ifcc) == pytest.approx(ngsp, abs=0.05)


@given(AMOUNTS)
def test_a_value_returns_unchanged_from_the_other_unit(amount: float) -> None:
    there = accepted_units("mmol/L", molar_mass=180.16)["mg/dL"]
    back = accepted_units("mg/dL", molar_mass=180.16)["mmol/L"]
    assert back(there(amount)) == pytest.approx(amount)
    percent = accepted_units("%", loinc="59261-8")["mmol/mol"]
    assert percent.inverse()(percent(amount)) == pytest.approx(amount)


def test_mass_and_substance_do_not_meet_without_a_molar_mass() -> None:
    assert "mmol/L" not in accepted_units("mg/dL")
    assert "mmol/mol" not in accepted_units("%")


def test_spellings_outside_the_table_are_not_guessed() -> None:
    assert not {"MG/DL", "mg/dl", "mgdL", "mmHg", ""} & set(accepted_units("mg/dL", molar_mass=386.65))
    assert "mmHg" not in KNOWN_UNITS


def test_every_installed_port_accepts_its_own_unit_as_it_is() -> None:
    quantities = [port for port in installed_ports() if port.kind == "quantity"]
    assert quantities
    for port in quantities:
        own = accepted_units(port.unit or "", loinc=port.loinc, molar_mass=port.molar_mass)[port.unit or ""]
        assert (own.scale, own.offset) == (1.0, 0.0)
