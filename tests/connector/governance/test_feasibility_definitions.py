"""Definitions of cohorts: what is refused before anything is spent, and what no patient's data can do to a count."""

from typing import Any

import pytest
from kit.feasibility_questions import HIGH, INFARCT, SNOMED, ask, asked_of, view
from kit.hospital import Hospital

from vht_federate.errors import (
    ComponentError,
    InputError,
    PermitError,
    ViewError,
)
from vht_federate.signing.canonical import canonical_bytes
from vht_federate.testing.noise import SeededNoise

NO_DEFINITION = [
    ({"resource": "Patient", "select": [{"column": [{"name": "id", "path": "getResourceKey()"}]}]}, "PATIENT"),
    ({"resource": "Patient", "select": [{"column": [{"name": "patient", "path": "'everybody'"}]}]}, "PATIENT"),
    ({"resource": "Observation", "select": [{"column": [{"name": "patient", "path": "id"}]}]}, "PATIENT"),
    ({"resource": "Patient", "select": [
        {"forEach": "link", "column": [{"name": "patient", "path": "getResourceKey()"}]}]}, "FUNCTION"),
    (view(where="nonsense("), "SYNTAX"),
    ({"resource": "Bogus", "select": []}, "RESOURCE"),
]  # fmt: skip


def test_a_view_that_is_no_cohort_definition_is_refused_before_anything_is_spent(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        for definition, code in NO_DEFINITION:
            with pytest.raises(ViewError) as caught:
                ask(node, stocked, view=definition)
            assert caught.value.code == f"VHT-VIEW-{code}"
        with pytest.raises(InputError) as unkept:
            ask(node, stocked, view=view("Procedure"))
        assert unkept.value.code == "VHT-INPUT-FHIR-TYPE"
        assert "query.drawn" not in stocked.kinds()


def test_a_view_that_would_stop_at_one_patient_stops_nowhere(stocked: Hospital) -> None:
    two_codings = {
        "resourceType": "Condition", "id": "two", "onsetDateTime": "2015-01-01",
        "subject": {"reference": "Patient/p1"},
        "code": {"coding": [{"system": SNOMED, "code": "22298006"}, {"system": SNOMED, "code": "230690007"}]},
    }  # fmt: skip
    (stocked.root / "more").mkdir()
    (stocked.root / "more" / "c.ndjson").write_bytes(canonical_bytes(two_codings) + b"\n")
    definition = view("Condition", "code.coding.code = '22298006'")
    with asked_of(stocked) as node:
        before = ask(node, stocked, view=definition)
        node.ingest(stocked.root / "more")
        after = ask(node, stocked, view={**definition, "name": "again"})
        assert (before["code"], before["count"]) == (after["code"], after["count"]) == (None, 10)


def test_a_number_out_of_range_leaves_its_own_patient_out_and_nobody_else(stocked: Hospital) -> None:
    """Patient p0 alone has two codings, and one number more passes the range: the others are counted as before."""
    two_codings = {
        "resourceType": "Condition", "id": "c-two", "onsetDateTime": "2015-01-01",
        "subject": {"reference": "Patient/p0"},
        "code": {"coding": [{"system": SNOMED, "code": "22298006"}, {"system": SNOMED, "code": "230690007"}]},
    }  # fmt: skip
    (stocked.root / "more").mkdir()
    (stocked.root / "more" / "c.ndjson").write_bytes(canonical_bytes(two_codings) + b"\n")
    large = "coding.count() * 4611686018427387904"  # in range for one coding
    where = f"(code.{large}) != code.coding.count()"
    in_column = [{"column": [{"name": "n", "path": f"code.{large}"}]}]
    each = [{"forEach": f"code.where(({large}) != coding.count())", "column": [{"name": "t", "path": "text"}]}]
    whole = view("Condition")
    definitions = [
        view("Condition", where),
        {**whole, "select": whole["select"] + in_column},
        {**whole, "select": whole["select"] + each},
    ]
    with asked_of(stocked) as node:
        node.ingest(stocked.root / "more")
        node.feasibility.settings = node.feasibility.settings.model_copy(update={"smallest_cell": 1})
        assert [ask(node, stocked, view=definition)["count"] for definition in definitions] == [10, 10, 10]
        alone = view("Condition", f"code.coding.count() = 2 and {where}")
        assert ask(node, stocked, view=alone)["count"] is None


def outlier(number: int, parts: int, **more: Any) -> dict[str, Any]:
    """A value of patient p0 alone, above 200, in so many parts (of another code: R4, obs-7)."""
    whole, part = (
        {
            "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
            "valueQuantity": {"value": 201, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit},
        }
        for code, unit in (("2093-3", "mg/dL"), ("8480-6", "mm[Hg]"))
    )
    return {
        "resourceType": "Observation", "id": f"outlier-{number}", "status": "final",
        "subject": {"reference": "Patient/p0"}, "effectiveDateTime": "2015-01-01", **whole,
        "component": [part] * parts, **more,
    }  # fmt: skip


def each_of(*paths: str) -> list[dict[str, Any]]:
    """Iterations beside the patient of an Observation."""
    columns = ({"name": f"x{number}", "path": "id"} for number in range(len(paths)))
    return [*view("Observation")["select"], *({"forEach": path, "column": [next(columns)]} for path in paths)]


def repeated(text: str, times: int, operator: str = " & ") -> str:
    return operator.join([text] * times)


ALONE = "value.ofType(Quantity).where(value > 200)"  # nobody but the outlier has any
THIS = {"name": "x", "path": "$this"}
UNBOUNDED = [
    {"select": each_of("component", "component")},
    {"select": each_of("component", "component", "component")},
    {"select": [*each_of(), {"forEachOrNull": repeated(f"{ALONE}.system", 80), "column": [THIS]}]},
    {"where": [{"path": f"{repeated(f'{ALONE}.system', 80)} = 'x'"}]},
    {"where": [{"path": f"({repeated(f'{ALONE}.system', 80, ' + ')}) = 'x'"}]},
    {"where": [{"path": f"{ALONE}.exists() and component.code.coding.code.join(',') = 'x'"}]},
    {"select": [*each_of(), *({"unionAll": [{"column": [{"name": f"u{n}", "path": "id"}]}] * 16} for n in range(9))]},
    {"where": [{"path": " and ".join(f"effective.ofType(dateTime) > @{1900 + n}-01-01" for n in range(40))}]},
    {"where": [{"path": repeated("component.where(value.ofType(Quantity).value > 100).exists()", 60, " and ")}] * 8},
]  # fmt: skip


def test_a_definition_that_one_resource_could_make_late_is_refused_before_anything_is_spent(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        for change in UNBOUNDED:
            with pytest.raises(ViewError) as caught:
                ask(node, stocked, view={**view("Observation"), **change})
            assert caught.value.code == "VHT-VIEW-LIMIT"
        assert "query.drawn" not in stocked.kinds()


HEAVY = " and ".join(f"value.ofType(Quantity).value + {n} > 0" for n in range(60))
BOUNDED = [
    {"select": each_of("component")},
    {"select": each_of(f"component.where({HEAVY})")},
    {"where": [{"path": f"{ALONE}.empty() or component.where({HEAVY}).count() > 0"}]},
    {"where": [{"path": f"{ALONE}.empty() or component.where({ALONE}.count() + 9223372036854775807 > 0).exists()"}]},
    {"where": [{"path": f"{ALONE}.empty() or -(-9223372036854775807 - {ALONE}.count()) > 0"}]},
    {"where": [{"path": f"{ALONE}.empty() or component[9223372036854775806 + {ALONE}.count()].exists()"}]},
    {"where": [{"path": "effective.ofType(dateTime)" + ".lowBoundary()" * 10 + " > @1900-01-01"}]},
]


def test_one_patient_of_unusual_data_moves_a_count_by_one_at_most_and_makes_no_view_late(stocked: Hospital) -> None:
    """Late is nobody: the limit is 48 seconds, which nothing here comes near."""
    (stocked.root / "more").mkdir()
    lines = [outlier(0, 1500), outlier(1, 250), outlier(2, 3)]
    (stocked.root / "more" / "o.ndjson").write_bytes(b"".join(canonical_bytes(resource) + b"\n" for resource in lines))
    with asked_of(stocked) as node:
        node.feasibility.settings = node.feasibility.settings.model_copy(update={"smallest_cell": 1})

        def counts(name: str) -> list[int]:
            definitions = ({**view("Observation"), **change, "name": name} for change in BOUNDED)
            return [ask(node, stocked, view=definition, epsilon=0.05)["count"] or 0 for definition in definitions]

        before = counts("before")
        node.ingest(stocked.root / "more")
        after = counts("after")
    assert [later - earlier for later, earlier in zip(after, before, strict=True)] == [1, 1, 0, 0, 0, 0, 0]
    assert before == [0, 0, 40, 40, 40, 40, 40]


def test_a_resource_larger_than_any_record_is_not_counted(stocked: Hospital) -> None:
    (stocked.root / "more").mkdir()
    (stocked.root / "more" / "o.ndjson").write_bytes(canonical_bytes(outlier(0, 1500)) + b"\n")
    with asked_of(stocked) as node:
        node.ingest(stocked.root / "more")
        node.feasibility.settings = node.feasibility.settings.model_copy(update={"smallest_cell": 1})
        assert ask(node, stocked, view=view("Observation", f"{ALONE}.exists()"))["count"] is None


def shape(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs between any two."""
    return {name: value for name, value in answer.items() if name not in ("answered_at", "receipt")}


@pytest.mark.parametrize("failure", [RuntimeError("p7 is ill"), MemoryError(), None])
def test_a_view_that_fails_or_is_late_is_told_and_logged_as_one_that_finds_nobody(
    stocked: Hospital, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: Exception | None
) -> None:
    nobody = view(where="gender = 'other'")
    with asked_of(stocked) as node, caplog.at_level("DEBUG"):
        empty = ask(node, stocked, view=nobody)
        with monkeypatch.context() as patched:
            if failure is None:  # the time is over before the view begins
                node.feasibility.settings = node.settings.model_copy(update={"feasibility_seconds": 1e-6})
            else:

                def fail(*_: Any) -> int:
                    raise failure

                patched.setattr(type(node.feasibility), "_count", fail)
            answer = ask(node, stocked)
        assert shape(answer) == shape(empty)
        first, second = [entry["body"] for entry in stocked.log() if entry["kind"] == "feasibility.answered"]
        same = set(first) - {"query", "question_digest", "view_sha256"}
        assert {name: first[name] for name in same} == {name: second[name] for name in same}
        assert second["code"] is None
        assert stocked.kinds()[-2:] == ["query.drawn", "feasibility.answered"]
        assert ask(node, stocked)["repeated"] is True
    assert "p7" not in caplog.text
    assert "VHT-VIEW" not in caplog.text


def test_a_failed_view_has_the_same_noise_as_any_other(stocked: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    with asked_of(stocked) as node:
        node.feasibility.noise = lambda: SeededNoise(3)
        node.feasibility.settings = node.feasibility.settings.model_copy(update={"smallest_cell": 1})
        drawn = SeededNoise(3).gaussian((1,))[0]

        def fail(*_: Any) -> int:
            raise ViewError("over", code="VHT-VIEW-TIME")

        monkeypatch.setattr(type(node.feasibility), "_count", fail)
        answer = ask(node, stocked)
        expected = round(answer["standard_deviation"] * drawn)
        assert answer["count"] == (expected if expected >= 1 else None)


@pytest.mark.parametrize(("took", "rest"), [(0.0, 60.0), (7.0, 53.0), (65.0, 0.0)])
def test_an_answer_is_due_at_the_same_time_whatever_the_view_did(
    stocked: Hospital, monkeypatch: pytest.MonkeyPatch, took: float, rest: float
) -> None:
    """The time of the view and the time waited after it add up, and nothing is logged before."""
    with asked_of(stocked) as node:
        now = 100.0
        waited: list[tuple[float, str]] = []
        count = node.feasibility._count
        node.feasibility.timer = lambda: now
        node.feasibility.pause = lambda seconds: waited.append((seconds, stocked.kinds()[-1]))

        def counted(*parts: Any) -> int:
            nonlocal now
            now += took
            return count(*parts)

        monkeypatch.setattr(node.feasibility, "_count", counted)
        assert ask(node, stocked)["count"] == 40
        assert waited == [(rest, "query.drawn")]


def test_a_question_reads_what_the_permits_columns_open_and_no_more(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        male, infarct, born = (
            view(where="gender = 'male'"),
            view("Condition", INFARCT),
            view(where="birthDate.exists()"),
        )
        assert [ask(node, stocked, view=definition)["count"] for definition in (male, infarct, born)] == [20, 10, 40]
        narrow = stocked.permit(permit_id="sex", columns=("male",))
        assert ask(node, stocked, narrow, permit_id="sex", view=male)["count"] == 20
        assert ask(node, stocked, narrow, permit_id="sex", view=born)["count"] is None
        drawn = stocked.kinds().count("query.drawn")
        for definition in (infarct, view("Observation", HIGH)):
            with pytest.raises(PermitError) as caught:
                ask(node, stocked, narrow, permit_id="sex", view=definition)
            assert caught.value.code == "VHT-PERMIT-COLUMN"
        assert stocked.kinds().count("query.drawn") == drawn
        other = stocked.permit(permit_id="diabetes", columns=("diabetes",))
        assert ask(node, stocked, other, permit_id="diabetes", view=infarct)["count"] is None
        assert ask(node, stocked, other, permit_id="diabetes", view=male)["count"] is None
        unknown = stocked.permit(permit_id="unknown", component_digests=("0" * 64,))
        with pytest.raises(ComponentError):
            ask(node, stocked, unknown, permit_id="unknown")


def test_a_for_each_beside_the_patient_is_no_iteration_of_the_patient(stocked: Hospital) -> None:
    each = {"forEach": "code.coding", "column": [{"name": "code", "path": "code"}]}
    definition = view("Condition")
    with asked_of(stocked) as node:
        for selects in ([*definition["select"], each], [each, *definition["select"]]):
            assert ask(node, stocked, view={**definition, "select": selects})["count"] == 10
        within = [{"forEach": "link", "select": view()["select"]}]
        many = [*definition["select"], *({**each, "column": [{"name": f"c{n}", "path": "code"}]} for n in range(2))]
        with pytest.raises(ViewError) as iterated:
            ask(node, stocked, view={**view(), "select": within})
        assert iterated.value.code == "VHT-VIEW-FUNCTION"
        with pytest.raises(ViewError) as multiplied:
            ask(node, stocked, view={**definition, "select": many})
        assert multiplied.value.code == "VHT-VIEW-LIMIT"
        repeated = [*definition["select"], {"repeat": ["extension"], "column": [{"name": "u", "path": "url"}]}]
        with pytest.raises(ViewError) as walk:
            ask(node, stocked, view={**definition, "select": repeated})
        assert walk.value.code == "VHT-VIEW-LIMIT"
