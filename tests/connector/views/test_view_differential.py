"""Compiled views against a slow oracle (fhirpathpy, row by row): shipped views on real exports, random paths."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import kit.reference_view_runner as reference
import pytest
from hypothesis import HealthCheck, given, settings
from kit.hypothesis_profiles import examples
from kit.places import ROOT, SHARED

from connector.views import run
from connector.views.sql.compilation import compile_view
from connector.views.sql.ndjson_sources import execute, find_files
from connector.views.sql.shipped import names, shipped
from vht_federate.errors import ViewError

EXPORT = SHARED / "data" / "gsd_r4_ndjson.tgz"
COHORT = ROOT / "out" / "synthea" / "fhir"
TYPES = ("Patient", "Observation", "Condition", "Encounter", "MedicationRequest", "Procedure")
AT_LEAST = examples(1_500, thorough=5_000)  # of each type, from its beginning to its end; all where there are fewer
Held = dict[str, list[dict[str, Any]]]


def spread(content: bytes) -> list[dict[str, Any]]:
    lines = content.splitlines()
    return [json.loads(line) for line in lines[:: max(1, len(lines) // AT_LEAST)]]


@pytest.fixture(scope="module")
def export() -> Held:
    """Resources of a Synthea export of 615 patients, made in 2019."""
    if not EXPORT.is_file():
        if os.environ.get("CI") == "true":
            pytest.fail(f"the export is missing: {EXPORT}")
        pytest.skip("the Synthea export (../shared/data/gsd_r4_ndjson.tgz) is not on this machine")
    resources = {}
    with tarfile.open(EXPORT) as archive:
        for member in archive:
            kind, file = Path(member.name).stem, archive.extractfile(member)
            if kind in TYPES and file is not None:
                resources[kind] = spread(file.read())
    assert {kind: len(resources[kind]) >= AT_LEAST for kind in ("Observation", "Encounter", "Procedure")} == {
        "Observation": True, "Encounter": True, "Procedure": True,
    }  # fmt: skip
    return resources


@pytest.fixture(scope="module")
def cohort() -> Held:
    """Resources of another Synthea: blood pressure as a panel, references in another form."""
    if not COHORT.is_dir():
        pytest.skip("there is no cohort of Synthea's: make synthea")
    resources = {path.stem: spread(path.read_bytes()) for path in sorted(COHORT.glob("*.ndjson"))}
    assert len(resources["Observation"]) >= AT_LEAST
    return resources


@pytest.mark.parametrize("source", ["export", "cohort"])
@pytest.mark.parametrize("name", names())
def test_a_shipped_view_gives_the_oracles_rows_in_its_order(
    name: str, source: str, request: pytest.FixtureRequest
) -> None:
    resources: Held = request.getfixturevalue(source)
    view = shipped(name)
    if view["resource"] not in resources:
        pytest.skip(f"this cohort has no {view['resource']}")
    expected = reference.rows(view, resources[view["resource"]])
    assert expected
    assert run(view, resources[view["resource"]]) == expected


def test_the_whole_export_gives_the_known_counts(export: dict[str, Any], tmp_path: Path) -> None:
    with tarfile.open(EXPORT) as archive:
        for member in archive:
            if Path(member.name).stem in {"Observation", "Patient"}:
                archive.extract(member, tmp_path, filter="data")
    counted = {}
    for name in ("patients", "observation_codings", "blood_pressure"):
        plan = compile_view(shipped(name))
        account = execute(
            plan, find_files(tmp_path, plan.resource).files, lambda batches: sum(batch.num_rows for batch in batches)
        )
        assert (account.other, account.faults) == (0, [])
        counted[name] = (account.lines, account.rows)
    assert counted == {
        "patients": (615, 615),
        "observation_codings": (88_674, 99_999),
        "blood_pressure": (88_674, 5_660),
    }


OBSERVATION_PATHS = [
    "code.coding.code",
    "code.coding.where(system = 'http://loinc.org').code",
    "code.coding.exists(code = '8302-2')",
    "component.value.ofType(Quantity).value",
    "component.where(value.ofType(Quantity).value > 100).code.coding.code",
    "component.code.coding[1].code",
    "component[1].code.coding.code",
    "value.exists()",
    "value.ofType(CodeableConcept).text.exists().not()",
    "value.ofType(Quantity).value * 2 + 1",
    "value.ofType(Quantity).value / 3 >= 20 and value.ofType(Quantity).unit = 'cm'",
    "value.ofType(Quantity).value > 50 or code.coding.code = '8302-2'",
    "(value.ofType(Quantity).unit = 'cm') implies (value.ofType(Quantity).value > 100)",
    "(value.ofType(Quantity).unit = 'cm') xor component.exists()",
    "effective.ofType(dateTime) > @2012-01-01",
    "issued <= @2015-06-01T00:00:00Z",
    "subject.reference.exists() and subject.type.empty()",
    "category.coding.code.first() & '/' & code.coding.code.first()",
    "code.coding.code.count()",
    "code.coding.last().display",
    "-2 * value.ofType(Quantity).value - 1",
    "7 div 2 + 7 mod 4",
    "meta.tag.where(system.exists()).code",
    "extension('http://none').value.ofType(string)",
]


def test_paths_over_observations_give_the_oracles_values(export: dict[str, list[dict[str, Any]]]) -> None:
    resources = [
        *export["Observation"][:60],
        *(resource for resource in export["Observation"] if "component" in resource),
    ][:100]
    columns = [
        {"name": f"p{number}", "path": path, "collection": True} for number, path in enumerate(OBSERVATION_PATHS)
    ]
    view = {"resource": "Observation", "select": [{"column": columns}]}
    for row, expected_row in zip(run(view, resources), reference.rows(view, resources), strict=True):
        for number, path in enumerate(OBSERVATION_PATHS):
            assert _rounded(row[f"p{number}"]) == _rounded(expected_row[f"p{number}"]), path


def _rounded(values: list[Any]) -> list[Any]:
    """Ours are decimals in steps of 1e-8; the oracle's have more digits."""
    return [round(float(value), 7) if isinstance(value, int | float) and not isinstance(value, bool) else value
            for value in values]  # fmt: skip


_words = st.sampled_from(["a", "b", "c"])
_name = st.fixed_dictionaries({}, optional={
    "use": st.sampled_from(["official", "usual"]), "family": _words, "given": st.lists(_words, min_size=1, max_size=3),
})  # fmt: skip
_contact = st.fixed_dictionaries({}, optional={"name": _name, "gender": _words,
                                                "telecom": st.lists(st.fixed_dictionaries({"value": _words}),
                                                                    min_size=1, max_size=2)})  # fmt: skip
_patient = st.fixed_dictionaries(
    {"resourceType": st.just("Patient"), "id": _words},
    optional={
        "name": st.lists(_name.filter(bool), min_size=1, max_size=3), "active": st.booleans(), "gender": _words,
        "contact": st.lists(_contact.filter(bool), min_size=1, max_size=3), "multipleBirthInteger": st.integers(0, 3),
        "maritalStatus": st.fixed_dictionaries({"coding": st.lists(st.fixed_dictionaries({"code": _words}),
                                                                   min_size=1, max_size=2)}),
    },
)  # fmt: skip

_filters = st.sampled_from([
    "", ".where(use = 'official')", ".where(given.exists())", ".where(family = 'a' or family = 'b')", ".first()",
    "[1]", ".where(given.count() > 1)", ".where((use = 'usual').not())", ".last()", ".where(family.empty())",
])  # fmt: skip
_names = st.tuples(st.sampled_from(["name", "contact.name"]), _filters, _filters).map("".join)
_strings = st.one_of(
    st.tuples(_names, st.sampled_from([".family", ".given", ".given.first()", ".given[1]", ".use"])).map("".join),
    st.sampled_from(["gender", "contact.gender", "contact.telecom.value", "maritalStatus.coding.code", "id"]),
)
_booleans = st.recursive(
    st.one_of(
        st.tuples(_strings, st.sampled_from([".exists()", ".empty()", ".count() > 1"])).map("".join),
        st.tuples(_strings, st.sampled_from([" = 'a'", " != 'b'"])).map("".join),
        st.sampled_from(["active", "multipleBirth.ofType(integer) + 1 > 2", "multipleBirth.exists()"]),
    ).map(lambda text: f"({text})"),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" and ", " or ", " xor ", " implies "]), inner).map("".join),
        inner.map(lambda text: f"{text}.not()"),
    ).map(lambda text: f"({text})"),
    max_leaves=4,
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(patients=st.lists(_patient, min_size=1, max_size=4), strings=st.lists(_strings, min_size=1, max_size=3),
       booleans=st.lists(_booleans, min_size=1, max_size=3), steps=_names,
       iteration=st.sampled_from(["forEach", "forEachOrNull"]), inner=_booleans)  # fmt: skip
def test_random_views_give_the_oracles_rows(
    patients: list[dict[str, Any]], strings: list[str], booleans: list[str], steps: str, iteration: str, inner: str
) -> None:
    columns = [{"name": f"s{number}", "path": path, "collection": True} for number, path in enumerate(strings)]
    columns += [{"name": f"b{number}", "path": path} for number, path in enumerate(booleans)]
    below = [{"name": "index", "path": "%rowIndex"}, {"name": "family", "path": "family"},
             {"name": "given", "path": "given", "collection": True}]  # fmt: skip
    view = {
        "resource": "Patient",
        "where": [{"path": f"{inner} or true"}],
        "select": [
            {"column": columns},
            {iteration: steps, "column": below, "unionAll": [
                {"forEach": "given", "column": [{"name": "one", "path": "$this"}]},
                {"forEachOrNull": "period", "column": [{"name": "one", "path": "id"}]},
            ]},
        ],
    }  # fmt: skip
    assert run(view, patients) == reference.rows(view, patients)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(patients=st.lists(_patient, min_size=1, max_size=3), string=_strings)
def test_a_random_cell_stops_a_view_exactly_where_the_oracle_has_more_than_one_value(
    patients: list[dict[str, Any]], string: str
) -> None:
    def selecting(**more: Any) -> dict[str, Any]:
        return {"resource": "Patient", "select": [{"column": [{"name": "cell", "path": string, **more}]}]}

    cells = [row["cell"] for row in reference.rows(selecting(collection=True), patients)]
    expected: Any = [{"cell": values[0] if values else None} for values in cells]
    try:
        got: Any = run(selecting(), patients)
    except ViewError as error:
        got = error.code
    assert got == ("VHT-VIEW-NOT-SINGLE" if any(len(values) > 1 for values in cells) else expected)
