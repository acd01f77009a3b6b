"""Code maps: every code has a source, every unit converts, and the shipped components agree with them."""

import contextvars
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from kit.fhir_resources import KEY, observation, quantity, write
from pydantic import ValidationError
from typer.testing import CliRunner

from connector.fhir import Store, ingest
from connector.fhir.codes import LOINC, SNOMED, Feature, Measure, feature_of, features
from connector.fhir.intake import installed_ports
from connector.fhir.observation_values import Units
from vht_federate.cli import app
from vht_federate.components.contract import Port


def test_the_maps_hold_the_features_that_studies_ask_for() -> None:
    expected = "systolic_bp diastolic_bp heart_rate body_mass_index body_weight body_height body_temperature hba1c egfr"
    expected += " total_cholesterol hdl_cholesterol ldl_cholesterol triglycerides glucose creatinine smoking_status"
    expected += " hypertension type_2_diabetes myocardial_infarction stroke"
    assert set(expected.split()) <= set(features())
    assert all(feature.source for feature in features().values())


def test_no_code_means_two_features() -> None:
    codings = [coding for feature in features().values() for coding in feature.codes]
    assert len(codings) == len(set(codings))


def _check_digit(sctid: str) -> bool:
    """Verhoeff, as in SNOMED CT's identifiers."""
    rows = [list(range(10)), [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
    for _ in range(6):
        rows.append([rows[-1][rows[1][digit]] for digit in range(10)])
    total = 0
    for place, digit in enumerate(reversed(sctid)):
        left, right = total, rows[place % 8][int(digit)]
        total = (left + right) % 5 if left < 5 and right < 5 else _dihedral(left, right)
    return total == 0


def _dihedral(left: int, right: int) -> int:
    if left < 5:
        return (left + right - 5) % 5 + 5
    return (left - 5 - right) % 5 + 5 if right < 5 else (left - right) % 5


def _luhn(loinc: str) -> bool:
    """Mod 10, as in LOINC's identifiers."""
    digits, check = loinc.split("-")
    odd = int("".join(reversed(digits))[::2][::-1]) * 2
    even = "".join(reversed(digits))[1::2][::-1]
    total = sum(map(int, even + str(odd)))
    return (10 - total % 10) % 10 == int(check)


def test_every_code_carries_its_check_digit() -> None:
    for feature in features().values():
        assert all(map(_luhn, feature.loinc)), feature.name
        snomed = (*feature.snomed, *(code for codes in feature.answers.values() for code in codes))
        assert all(map(_check_digit, snomed)), feature.name
    assert not _luhn("8480-7")
    assert not _check_digit("38341004")


def test_every_listed_unit_becomes_the_preferred_one() -> None:
    for feature in features().values():
        if feature.unit is None:
            continue
        measure = Measure.of_feature(feature)
        turns = measure.turns((feature.unit, *feature.units, *feature.read_as))
        assert set(turns) == {feature.unit, *feature.units, *feature.read_as}, feature.name
        assert all(turns[unit].read_as == meant for unit, meant in feature.read_as.items())
        assert feature.bounds is not None
        assert feature.bounds[0] < feature.bounds[1]


def _listed(ports: tuple[Port, ...]) -> list[tuple[Port, Feature]]:
    pairs = []
    for port in ports:
        system = port.source.system if port.source.type == "condition" else port.source.code_system
        feature = feature_of(system, port.source.codes) if port.source.codes else None
        if feature is not None:
            pairs.append((port, feature))
    return pairs


def test_components_agree_with_the_maps_where_both_list_codes() -> None:
    listed = _listed(installed_ports())
    assert {"systolic_bp", "total_cholesterol", "hba1c", "egfr", "diabetes"} <= {port.name for port, _ in listed}
    for port, feature in listed:
        kind = {"observation": "quantity", "observation-code": "coded", "condition": "condition"}[port.source.type]
        assert feature.kind == kind, port.name
        if kind == "quantity":
            assert port.unit is not None
            assert Measure.of_feature(feature).turn(port.unit) is not None, port.name
            assert port.molar_mass in (None, feature.molar_mass), port.name
            assert port.bounds is not None
            assert feature.bounds is not None
            assert feature.bounds[0] <= port.bounds[0] < port.bounds[1] <= feature.bounds[1], port.name
        if kind == "coded":
            answers = {code for codes in feature.answers.values() for code in codes}
            assert {*port.source.values, *port.source.negatives} <= answers


def test_no_component_mixes_codes_of_two_features() -> None:
    by_code = {coding: feature.name for feature in features().values() for coding in feature.codes}
    for port in installed_ports():
        if port.source.type in ("observation", "condition") and port.name != "cvd_10y":
            system = port.source.system if port.source.type == "condition" else port.source.code_system
            assert len({by_code.get((system, code)) for code in port.source.codes} - {None}) <= 1, port.name


def test_a_clearance_is_no_normalised_rate_unless_its_code_says_so() -> None:
    units = Units(installed_ports())
    assert units.accept("mL/min", [(LOINC, "33914-3")])
    assert not units.accept("mL/min", [(LOINC, "2093-3")])
    clearance = Measure("mL/min/{1.73_m2}")
    assert clearance.turn("mL/min") is None
    conversion = Measure.of_feature(features()["egfr"]).turn("mL/min")
    assert conversion is not None
    assert (conversion.way(60.0), conversion.read_as) == (60.0, "mL/min/{1.73_m2}")


def test_a_unit_that_says_too_little_is_read_as_meant_in_whatever_spelling() -> None:
    rate = Measure.of_feature(features()["egfr"])
    for unit, value in (("mL/min{creat}", 60.0), ("ml/min", 60.0), ("L/h", 3.6), ("uL/s", 1000.0)):
        conversion = rate.turn(unit)
        assert conversion is not None, unit
        assert (round(conversion.way(value), 9), conversion.read_as) == (60.0, "mL/min/{1.73_m2}")
    assert [rate.turn(unit) for unit in ("mL/min/{m2}", "mL", "{rate}")] == [None, None, None]


def test_an_annotated_hba1c_is_taken_in_and_a_number_of_no_scale_is_not(tmp_path: Path) -> None:
    values = {"h1": (7.0, "%{HemoglobinA1C}"), "h2": (53, "mmol/mol{Hb}"), "h3": (7.0, "%{Hb}"), "h5": (53, "mmol/mol")}
    hba1c = {"code": {"coding": [{"system": LOINC, "code": "4548-4"}]}}
    sent = [observation(name, valueQuantity=quantity(*value), **hba1c) for name, value in values.items()]
    sent.append(observation("h4", valueQuantity=quantity(7.0, "{%}"), **hba1c))
    sent.append(observation("h6", valueQuantity=None, valueInteger=7, **hba1c))
    sent.append(observation("h7", valueQuantity={"value": 53, "unit": "mmol/mol{Hb}"}, **hba1c))  # the text alone
    sent.append(observation("h8", valueQuantity={"value": 7.0, "unit": "{%}"}, **hba1c))
    report = ingest(write(tmp_path / "in", "x.ndjson", sent), tmp_path / "store", node_key=KEY, dataset="d")
    assert (report.accepted, report.value_reasons) == (8, {"unknown-unit": 3})
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    [part] = generation.parts("observation")
    measure, read = Measure.of_feature(features()["hba1c"]), []
    for row in pq.read_table(part).to_pylist():
        if row["number"] is not None:
            turn = measure.turn(row["unit"])
            assert turn is not None
            read.append(round(turn.way(row["number"]), 3))
    assert read == [7.0] * 5


def test_intake_knows_units_by_code_and_any_ucum_elsewhere() -> None:
    units = Units(installed_ports())
    systolic, unknown = [(LOINC, "8480-6")], [(LOINC, "99999-9")]
    assert units.accept("kPa", systolic)
    assert not units.accept("mg/dL", systolic)
    assert not units.accept("mmHg", systolic)
    assert units.accept("kU/L", unknown)
    assert not units.accept("widgets", unknown)
    assert units.accept("[degF]", [(LOINC, "8310-5")])
    assert not units.accept("%", [(LOINC, "8310-5")])
    codings = [(LOINC, "8480-6"), (LOINC, "99999-9")]
    assert units.accept("mm[Hg]", codings)
    assert not units.accept("kU/L", codings)


@pytest.mark.parametrize(
    "broken",
    [
        {"kind": "quantity", "loinc": ["8480-6"]},
        {"kind": "condition"},
        {"kind": "condition", "snomed": ["38341003"], "unit": "kg", "bounds": [0, 1]},
        {"kind": "coded", "loinc": ["72166-2"]},
        {"kind": "condition", "snomed": ["three"]},
        {"kind": "condition", "snomed": ["38341003"], "colour": "red"},
        {"kind": "condition", "snomed": ["38341003"], "source": []},
    ],
)
def test_a_map_that_makes_no_sense_is_refused(broken: dict[str, object]) -> None:
    described = {"name": "one", "title": "One", "source": ["https://loinc.org/8480-6"]} | broken
    with pytest.raises(ValidationError):
        Feature.model_validate(described)


def test_codes_of_no_feature_or_of_two_have_none() -> None:
    assert feature_of(LOINC, ["8480-6", "8462-4"]) is None
    assert feature_of(LOINC, ["8480-6", "99999-9"]) is None
    assert feature_of(SNOMED, ["8480-6"]) is None
    feature = feature_of(LOINC, ["14647-2"])
    assert feature is not None
    assert feature.name == "total_cholesterol"


def node_codes(*arguments: str) -> dict[str, Any]:
    command = ["--json", "node", "codes", *arguments]
    done = contextvars.copy_context().run(CliRunner().invoke, app, command)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_command_lists_every_feature_and_explains_one() -> None:
    listed = node_codes()["data"]["features"]
    assert {feature["name"] for feature in listed} == set(features())
    cholesterol = node_codes("total_cholesterol")["data"]
    assert cholesterol["conversions"]["mmol/L"]["scale"] == pytest.approx(38.665)
    assert "http://loinc.org|2093-3" in cholesterol["codes"]
    assert node_codes("aura")["error"]["code"] == "VHT-INPUT-FEATURE"
