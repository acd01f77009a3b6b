"""Feasibility: counts with noise under a permit and the ledger, one answer to one question, evidence of each."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kit.console_session import Console
from kit.hospital import DATASET, Hospital
from kit.hospital import ask as request_visit

from connector.governance.feasibility import STANDS
from connector.governance.ledger_export import export_ledger
from connector.listeners.outward import outward_app
from connector.node import Node
from connector.settings import NodeSettings
from connector.store.models import FhirClientRow
from vht_federate.domain.feasibility import FEASIBILITY_TYP, FeasibilityQuestion
from vht_federate.domain.law import DataCategory, Purpose
from vht_federate.errors import (
    BudgetError,
    CohortError,
    ComponentError,
    InputError,
    PermitError,
    RefusedError,
    RevokedError,
    VerificationError,
    ViewError,
)
from vht_federate.evidence.event_text import describe
from vht_federate.evidence.ledger_check import check_ceiling
from vht_federate.evidence.node_log import read_node_log
from vht_federate.evidence.query_record import queries_drawn
from vht_federate.evidence.visit_record import visit_records
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.signing.canonical import canonical_bytes
from vht_federate.signing.keys import SigningKey
from vht_federate.testing.asgi import AppClient
from vht_federate.testing.noise import SeededNoise


def view(resource: str = "Patient", where: str | None = None, **more: Any) -> dict[str, Any]:
    path = "getResourceKey()" if resource == "Patient" else "subject.getReferenceKey(Patient)"
    made = {"resource": resource, "select": [{"column": [{"name": "patient", "path": path}]}], **more}
    return {**made, "where": [{"path": where}]} if where else made


SNOMED = "http://snomed.info/sct"
HIGH = "value.ofType(Quantity).value > 120"
INFARCT = "code.coding.where(system = 'http://snomed.info/sct' and code = '22298006').exists()"


def question(hospital: Hospital, *, key: SigningKey | None = None, **changes: Any) -> str:
    user = key or hospital.user
    fields: dict[str, Any] = {
        "title": "How many men?",
        "created_at": datetime.now(UTC),
        "permit_id": "permit-1",
        "user_kid": user.public.kid,
        "purpose": Purpose.RESEARCH_ALGORITHMS,
        "categories": (DataCategory.EHR,),
        "dataset_ids": (DATASET,),
        "view": view(),
        "epsilon": 0.3,
        **changes,
    }
    return user.sign(FeasibilityQuestion.model_validate(fields).claims(), typ=FEASIBILITY_TYP)


def silence() -> SeededNoise:
    """Noise of nothing: what is left is the count."""
    return SeededNoise(0, scale=0.0)


@contextmanager
def asked_of(hospital: Hospital, *, silent: bool = True) -> Iterator[Node]:
    with hospital.open() as node:
        node.feasibility.pause = lambda _: None
        node.feasibility.settings = node.settings.model_copy(update={"feasibility_seconds": 60.0})
        if silent:
            node.feasibility.noise = silence
        yield node


def ask(node: Node, hospital: Hospital, permit: str | None = None, **changes: Any) -> dict[str, Any]:
    user = changes.get("key") or hospital.user
    return node.feasibility.answer(permit or hospital.permit(), question(hospital, **changes), user.public.jwk())


COUNTS = [
    (view(where="gender = 'male'"), 20),
    (view("Observation", HIGH), 30),
    (view("Condition", INFARCT), 10),
    (view("Observation", "value.ofType(Quantity).value > 145"), None),
    (view(where="gender = 'other'"), None),
]


def test_a_count_is_of_the_patients_who_meet_the_definition(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        for definition, count in COUNTS:
            told = ask(node, stocked, view=definition)
            assert (told["count"], told["smallest_cell"], told["code"], told["repeated"]) == (count, 10, None, False)


def test_the_answer_carries_the_noise_that_the_ledger_paid_for(stocked: Hospital) -> None:
    with asked_of(stocked, silent=False) as node:
        node.feasibility.noise = lambda: SeededNoise(7)
        told = ask(node, stocked, view=view(), epsilon=0.3)
        deviation = told["standard_deviation"]
        assert 5 < deviation < 30
        expected = round(40 + deviation * SeededNoise(7).gaussian((1,))[0])
        assert told["count"] == (expected if expected >= 10 else None)
        [query] = [entry for entry in stocked.log() if entry["kind"] == "query.drawn"]
        [answered] = [entry for entry in stocked.log() if entry["kind"] == "feasibility.answered"]
        events = query["body"]["events"]
        assert (len(events), events[0]["population"], events[0]["noise_multiplier"]) == (1, "all", deviation)
        assert query["body"]["operator"] == "Institute"
        assert answered["index"] == query["index"] + 1
        assert (answered["body"]["count"], answered["body"]["query"]) == (told["count"], query["body"]["query"])
        assert answered["permit_id"] == query["permit_id"] == "permit-1"
        spent = node.books.budget()["datasets"][DATASET]["spent"]
        assert 0.29 < spent["train"] <= 0.3
        assert spent["test"] == spent["train"]


def test_the_same_question_again_is_told_the_same_and_costs_nothing_more(stocked: Hospital) -> None:
    other = SigningKey.generate()
    with asked_of(stocked, silent=False) as node:
        first = ask(node, stocked)
        spent = node.books.budget()["datasets"][DATASET]["spent"]
        again = [ask(node, stocked, title="Asked anew") for _ in range(3)]
        assert {one["count"] for one in again} == {first["count"]}
        assert all(one["repeated"] for one in again)
        colleague = stocked.permit(
            permit_id="permit-2", data_users=({"name": "Other", "kind": "academic", "kid": other.public.kid},)
        )
        assert ask(node, stocked, colleague, permit_id="permit-2", key=other)["count"] == first["count"]
        assert node.books.budget()["datasets"][DATASET]["spent"] == spent
        assert stocked.kinds().count("query.drawn") == stocked.kinds().count("feasibility.answered") == 1
        assert ask(node, stocked, view=view(where="gender = 'male'"))["repeated"] is False


def test_an_answer_is_told_by_the_smallest_cell_of_today(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        assert ask(node, stocked)["count"] == 40
        node.feasibility.settings = node.feasibility.settings.model_copy(update={"smallest_cell": 50})
        again = ask(node, stocked)
        assert (again["count"], again["smallest_cell"], again["repeated"]) == (None, 50, True)


def test_after_its_time_a_question_is_answered_anew_at_its_cost(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        ask(node, stocked)
        now = datetime.now(UTC)
        node.feasibility.clock = lambda: now + STANDS + timedelta(seconds=1)
        assert ask(node, stocked)["repeated"] is False
        assert stocked.kinds().count("query.drawn") == 2


def test_a_permit_that_paid_for_questions_alone_is_in_the_budget_and_in_the_auditors_ledger(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        token = stocked.permit()
        request_visit(node, stocked, token)  # waits for an operator: it reserved nothing
        assert node.books.budget()["permits"] == {}
        ask(node, stocked, token)
        budget = node.books.budget()
        assert 0.29 < budget["permits"]["permit-1"]["spent"]["train"] <= 0.3
        assert "permit-1" in {line["of"] for line in budget["patients"]}
        client = stocked.permit(permit_id="permit-2")
        keys = {"keys": [SigningKey.generate().public.jwk()]}
        with node.database.write() as session:
            session.add(
                FhirClientRow(
                    id="c-1", name="Program", permit_id="permit-2", permit=client, scope="system/*.rs", jwks=keys,
                    registered_at=datetime.now(UTC), registered_by="Ada",
                )
            )  # fmt: skip
        ask(node, stocked, client, permit_id="permit-2", view=view(where="gender = 'male'"))
        assert set(node.books.budget()["permits"]) == {"permit-1", "permit-2"}
        with node.database.read() as session:
            made = export_ledger(session, node.ledger, node.settings, node.key, datetime.now(UTC))
        assert {cap.of for cap in made.caps if cap.name == "permit"} == {"permit-1", "permit-2"}


def test_many_at_once_ask_one_question_once(stocked: Hospital) -> None:
    with asked_of(stocked, silent=False) as node:
        told: list[Any] = []
        permit, signed = stocked.permit(), question(stocked)
        threads = [
            threading.Thread(
                target=lambda: told.append(node.feasibility.answer(permit, signed, stocked.user.public.jwk())["count"])
            )
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(told) == 6
        assert len(set(told)) == 1
        assert stocked.kinds().count("query.drawn") == 1


def test_patients_who_opted_out_and_inactive_ones_are_not_counted(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        node.opt_out("p0", since=datetime.now(UTC) - timedelta(days=9))
        node.opt_out("p1", since=datetime.now(UTC) - timedelta(days=9))
        assert ask(node, stocked)["count"] == 38
        forced = stocked.permit(permit_id="permit-2", overrides_opt_out=True)
        assert ask(node, stocked, forced, permit_id="permit-2", view=view(where="id.exists()"))["count"] == 40


def until_refused(node: Node, hospital: Hospital, permit: str) -> tuple[int, BudgetError]:
    """How many questions at epsilon 0.3 were answered, and what the next one met."""
    for number in range(10):
        try:
            ask(node, hospital, permit, permit_id="small", view=view(where=f"birthDate > @19{50 + number}-01-01"))
        except BudgetError as error:
            return number, error
    pytest.fail("ten questions were answered")


def test_when_the_cap_is_reached_the_question_is_refused_and_that_is_logged(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        permit = stocked.permit(permit_id="small", epsilon=0.5)
        answered, error = until_refused(node, stocked, permit)
        assert error.code == "VHT-BUDGET-PERMIT"
        assert 1 <= answered < 5
        refused = stocked.log()[-1]
        assert (refused["kind"], refused["body"]["code"]) == ("permit.checked", "VHT-BUDGET-PERMIT")
        assert stocked.kinds().count("query.drawn") == answered
        with pytest.raises(BudgetError) as dear:
            ask(node, stocked, epsilon=5.0)
        assert dear.value.code == "VHT-BUDGET-QUESTION"


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
        assert [ask(node, stocked, view=one)["count"] for one in definitions] == [10, 10, 10]
        alone = view("Condition", f"code.coding.count() = 2 and {where}")
        assert ask(node, stocked, view=alone)["count"] is None


def outlier(number: int, parts: int, **more: Any) -> dict[str, Any]:
    """A blood pressure of patient p0 alone, above 200, in so many parts."""
    part = {
        "code": {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]},
        "valueQuantity": {"value": 201, "unit": "mm[Hg]", "system": "http://unitsofmeasure.org", "code": "mm[Hg]"},
    }
    return {
        "resourceType": "Observation", "id": f"outlier-{number}", "status": "final",
        "subject": {"reference": "Patient/p0"}, "effectiveDateTime": "2015-01-01", **part,
        "component": [part] * parts, **more,
    }  # fmt: skip


def each_of(*paths: str) -> list[dict[str, Any]]:
    """Iterations beside the patient of an Observation."""
    columns = ({"name": f"x{number}", "path": "id"} for number in range(len(paths)))
    return [*view("Observation")["select"], *({"forEach": one, "column": [next(columns)]} for one in paths)]


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
    (stocked.root / "more" / "o.ndjson").write_bytes(b"".join(canonical_bytes(one) + b"\n" for one in lines))
    with asked_of(stocked) as node:
        node.feasibility.settings = node.feasibility.settings.model_copy(update={"smallest_cell": 1})

        def counts(name: str) -> list[int]:
            asked = ({**view("Observation"), **change, "name": name} for change in BOUNDED)
            return [ask(node, stocked, view=one, epsilon=0.05)["count"] or 0 for one in asked]

        before = counts("before")
        node.ingest(stocked.root / "more")
        after = counts("after")
    assert [one - other for one, other in zip(after, before, strict=True)] == [1, 1, 0, 0, 0, 0, 0]
    assert before == [0, 0, 40, 40, 40, 40, 40]


def test_a_resource_larger_than_any_record_is_not_counted(stocked: Hospital) -> None:
    (stocked.root / "more").mkdir()
    (stocked.root / "more" / "o.ndjson").write_bytes(canonical_bytes(outlier(0, 1500)) + b"\n")
    with asked_of(stocked) as node:
        node.ingest(stocked.root / "more")
        node.feasibility.settings = node.feasibility.settings.model_copy(update={"smallest_cell": 1})
        assert ask(node, stocked, view=view("Observation", f"{ALONE}.exists()"))["count"] is None


def shape(told: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs between any two."""
    return {name: value for name, value in told.items() if name not in ("answered_at", "receipt")}


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
            told = ask(node, stocked)
        assert shape(told) == shape(empty)
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
        told = ask(node, stocked)
        expected = round(told["standard_deviation"] * drawn)
        assert told["count"] == (expected if expected >= 1 else None)


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
        assert [ask(node, stocked, view=one)["count"] for one in (male, infarct, born)] == [20, 10, 40]
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


def test_a_question_is_judged_as_a_study_is(stocked: Hospital) -> None:
    stranger = SigningKey.generate()
    with asked_of(stocked) as node:
        for changes, code in (
            ({"key": stranger}, "VHT-PERMIT-USER"),
            ({"purpose": Purpose.EDUCATION}, "VHT-PERMIT-PURPOSE"),
            ({"dataset_ids": ("urn:else",)}, "VHT-PERMIT-DATASET"),
            ({"permit_id": "another"}, "VHT-PERMIT-MISMATCH"),
        ):
            with pytest.raises(PermitError) as caught:
                ask(node, stocked, **changes)
            assert caught.value.code == code
            assert stocked.log()[-1]["body"]["code"] == code
        with pytest.raises(RefusedError, match="24 hours"):
            ask(node, stocked, created_at=datetime.now(UTC) - timedelta(days=2))
        with pytest.raises(PermitError) as sealed:
            ask(node, stocked, stocked.permit(permit_id="p3", release_types=("component",)), permit_id="p3")
        assert sealed.value.code == "VHT-PERMIT-RELEASE"
        forged = stocked.user.sign({"title": "x"}, typ=FEASIBILITY_TYP)
        with pytest.raises(InputError, match="does not fit"):
            node.feasibility.answer(stocked.permit(), forged, stocked.user.public.jwk())
        stocked.issuer.revoke("permit-1")
        with pytest.raises(RevokedError):
            ask(node, stocked)
        assert "query.drawn" not in stocked.kinds()


def test_a_node_may_answer_none_and_one_without_data_says_so(hospital: Hospital) -> None:
    with asked_of(hospital) as node:
        with pytest.raises(CohortError):
            ask(node, hospital)
        node.feasibility.settings = node.feasibility.settings.model_copy(update={"feasibility_epsilon": 0.0})
        with pytest.raises(RefusedError) as caught:
            ask(node, hospital)
        assert caught.value.code == "VHT-REFUSED-FEASIBILITY"


def test_the_outward_listener_answers_and_the_operator_sees_what_was_told(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        browser = AppClient(outward_app(node))
        body = {"permit": stocked.permit(), "question": question(stocked), "user_key": stocked.user.public.jwk()}
        answer = browser.post("/feasibility", json=body)
        assert answer.status_code == 200
        assert (answer.json()["count"], answer.json()["node"]) == (40, "hospital-1")
        assert browser.post("/feasibility", json={**body, "question": "x.y.z"}).status_code == 403
        assert browser.get("/api/feasibility").status_code == 404
        console = Console(node, stocked)
        assert console.browser.get("/questions").status_code == 303
        console.log_in()
        page = console.browser.get("/questions").text
        assert "How many men?" in page
        assert ">40<" in page
        assert console.browser.get("/log").text.count("A feasibility question answered") == 1


def audited(node: Node, hospital: Hospital) -> Any:
    export = node.evidence.export("permit-1")
    return read_node_log("nodes/h.json", canonical_bytes(export), "hospital-1", "permit-1", node.key.public)


def test_an_auditor_recomputes_what_questions_cost_and_finds_no_answer_without_its_spend(stocked: Hospital) -> None:
    from vht_federate.domain.permit import Permit
    from vht_federate.signing.keys import unverified_claims

    token = stocked.permit()
    permit = Permit.from_claims(unverified_claims(token))
    with asked_of(stocked) as node:
        for where in ("gender = 'male'", "gender = 'female'"):
            ask(node, stocked, token, view=view(where=where))
        log = audited(node, stocked)
        assert visit_records(log) == {}
        asked = queries_drawn(log)
        assert [one.label for one in asked] == ["feasibility", "feasibility"]
        total = check_ceiling("nodes/h.json", permit, [], epsilon_by_population, asked)
        assert 0.3 < total["train"] < 0.6
        assert "feasibility question" in describe(log.entries[-1])
        node.evidence.append("feasibility.answered", {"query": "q-unpaid"}, permit_id="permit-1")
        with pytest.raises(VerificationError, match=r"follows no query\.drawn"):
            queries_drawn(audited(node, stocked))


def test_a_crash_between_spend_and_answer_has_spent(stocked: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    with asked_of(stocked) as node:

        def die(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(type(node.feasibility), "_keep", die)
            with pytest.raises(KeyboardInterrupt):
                ask(node, stocked)
        assert stocked.kinds()[-1] == "query.drawn"
    with asked_of(stocked) as node:
        assert node.books.budget()["datasets"][DATASET]["spent"]["train"] > 0.29
        assert ask(node, stocked)["count"] == 40
        assert stocked.kinds().count("query.drawn") == 2


def test_the_command_asks_the_hospitals_of_a_study(stocked: Hospital, tmp_path: Path) -> None:
    import contextvars
    import json

    import tomli_w
    from kit.served_node import Served
    from typer.testing import CliRunner

    from vht_federate.cli import app

    stocked.user = SigningKey.create(tmp_path / "user.key")
    (tmp_path / "permit.jwt").write_text(stocked.permit())
    definition = tmp_path / "view.json"
    definition.write_text(json.dumps(view()))
    NodeSettings.read(stocked.state).model_copy(update={"feasibility_seconds": 0.5}).write(stocked.state)
    served = Served(stocked)
    try:
        served.await_health()
        study = {
            "study": {"id": "s", "title": "T", "permit": "permit.jwt", "user_key": "user.key",
                      "purpose": Purpose.RESEARCH_ALGORITHMS.value, "categories": [DataCategory.EHR.value]},
            "component": {"name": "cardio-risk", "profile": "cardiometabolic"},
            "privacy": {"epsilon": 1.0, "delta": 1e-5},
            "federation": {"coordinator": "c", "ca": str(stocked.tls.ca)},
            "nodes": [{"name": "hospital-1", "url": served.settings.outward_url, "dataset": DATASET},
                      {"name": "gone", "url": "https://127.0.0.1:1", "dataset": DATASET}],
        }  # fmt: skip
        (tmp_path / "study.toml").write_text(tomli_w.dumps(study))

        def command(*more: str) -> dict[str, Any]:
            line = ["--json", "study", "feasibility", str(tmp_path / "study.toml"), str(definition), *more]
            done = contextvars.copy_context().run(CliRunner().invoke, app, line)
            return dict(json.loads(done.stdout))

        told = command("--epsilon", "0.3")["data"]
        assert told["nodes"]["hospital-1"]["repeated"] is False
        assert told["refused"]["gone"]["code"] == "VHT-UNAVAILABLE-PEER"
        again = command("--epsilon", "0.3", "--node", "hospital-1")["data"]
        assert again["total"] == told["nodes"]["hospital-1"]["count"]
        assert command("--node", "nobody")["error"]["code"] == "VHT-INPUT-NODE"
        assert command("--node", "gone")["error"]["code"] == "VHT-UNAVAILABLE-PEER"
    finally:
        served.end()
