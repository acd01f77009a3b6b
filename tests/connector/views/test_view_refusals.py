"""Views that are refused: wrong shape, wrong types, too big, or reaching outside."""

from pathlib import Path
from typing import Any

import duckdb
import pytest

from connector.fhir.r4.elements import _definitions
from connector.views import explain, run
from connector.views.sql.execution import locked, spooled
from scripts.derive_fhir_elements import derive
from vht_federate.errors import InputError, ViewError

PATIENT = {"resourceType": "Patient", "id": "p1", "name": [{"family": "a"}, {"family": "b"}]}


def view(path: str, **more: Any) -> dict[str, Any]:
    return {"resource": "Patient", "select": [{"column": [{"name": "cell", "path": path, **more}]}]}


def refusal(definition: Any) -> ViewError:
    with pytest.raises(ViewError) as caught:
        run(definition, [PATIENT])
    return caught.value


@pytest.mark.parametrize(
    ("path", "code", "place"),
    [
        ("name.foo", "ELEMENT", "at 5"),
        ("id.foo", "ELEMENT", "at 3"),
        ("name.family = 1", "TYPE", "at 12"),
        ("birthDate = '1970-01-01'", "TYPE", "at 10"),
        ("birthDate < @2020-13-01", "SYNTAX", "at 12"),
        ("name.where(family).exists()", "TYPE", "at 11"),
        ("true > false", "TYPE", "at 5"),
        ("deceased", "CHOICE", "at 0"),
        ("foo()", "FUNCTION", "at 0"),
        ("name.first(1)", "FUNCTION", "at 5"),
        ("%missing", "CONSTANT", "at 0"),
        ("(name | name)", "SYNTAX", "at 6"),
        ("name.", "SYNTAX", "at 5"),
        ("1 = 4 days", "SYNTAX", "quantities"),
        ("birthDate > @2015-02-04T14", "SYNTAX", "without seconds"),
        ("@T14:34 = @T14:34:00", "SYNTAX", "without seconds"),
        ("@T14:34:28Z = @T14:34:28", "SYNTAX", "offset"),
        ("'a", "SYNTAX", "at 0"),
        ("99999999999999999999", "LIMIT", "at 0"),
        ("1 + " + "9" * 5000, "LIMIT", "at 4"),
        ("1 + " + "9" * 5000 + ".0", "LIMIT", "at 4"),
        ("0." + "1" * 40, "LIMIT", "at 0"),
        ("contained.ofType(Patient).id", "TYPE", "at 10"),
        ("name", "COMPLEX", "path"),
        ("name.family", "NOT-SINGLE", "select[0].column[0].path at 0"),
    ],
)
def test_a_wrong_path_is_refused_with_its_place(path: str, code: str, place: str) -> None:
    error = refusal(view(path))
    assert error.code == f"VHT-VIEW-{code}"
    assert error.message.startswith("select[0].column[0].path")
    assert place in error.message
    assert "family" not in error.message or "family" in path


@pytest.mark.parametrize(
    ("definition", "code"),
    [
        ([], "SHAPE"),
        ({"resource": "Patient", "selct": []}, "SHAPE"),
        ({"resource": "Patient", "select": []}, "SHAPE"),
        ({"resource": "Bogus", "select": [{"column": [{"name": "a", "path": "id"}]}]}, "RESOURCE"),
        ({"resource": "HumanName", "select": [{"column": [{"name": "a", "path": "id"}]}]}, "RESOURCE"),
        ({"resource": 'Patient" --', "select": [{"column": [{"name": "a", "path": "id"}]}]}, "RESOURCE"),
        ({"resource": "Patient", "select": [{"column": [{"name": 'a" b', "path": "id"}]}]}, "NAME"),
        ({"resource": "Patient", "select": [{"column": [{"name": "a", "path": "id"}, {"name": "A", "path": "id"}]}]},
         "COLUMN"),
        ({"resource": "Patient", "select": [{"forEach": "name", "repeat": ["name"]}]}, "SHAPE"),
        ({"resource": "Patient", "select": [{"repeat": ["$this"], "column": [{"name": "a", "path": "id"}]}]}, "REPEAT"),
        ({"resource": "Patient", "select": [{"repeat": ["name", "contact"], "column": [{"name": "a", "path": "id"}]}]},
         "REPEAT"),
        ({"resource": "Patient", "where": [{"path": "name.family"}],
          "select": [{"column": [{"name": "a", "path": "id"}]}]}, "TYPE"),
        ({"resource": "Patient", "constant": [{"name": "c", "valueInteger": "1; DROP"}],
          "select": [{"column": [{"name": "a", "path": "%c"}]}]}, "CONSTANT"),
        ({"resource": "Patient", "constant": [{"name": "c", "valueDate": "2020-02-30"}],
          "select": [{"column": [{"name": "a", "path": "%c"}]}]}, "CONSTANT"),
        ({"resource": "Patient", "select": [{"unionAll": [
            {"column": [{"name": "a", "path": "id"}]}, {"column": [{"name": "a", "path": "active"}]}]}]}, "UNION"),
        (view("id", type="integer"), "TYPE"),
        (view("id", type="foo"), "TYPE"),
        (view("contact", type="PatientContact", collection=True), "TYPE"),
        (view("contact.ofType(PatientContact).id", collection=True), "TYPE"),
        (view("contact", type="Patient.link", collection=True), "COMPLEX"),
    ],
)  # fmt: skip
def test_a_wrong_view_is_refused_by_code(definition: Any, code: str) -> None:
    assert refusal(definition).code == f"VHT-VIEW-{code}"


@pytest.mark.parametrize(
    ("resource", "path", "type_name"),
    [
        ("Observation", "component", "Observation.component"),
        ("Observation", "component.referenceRange", "Observation.referenceRange"),
        ("Questionnaire", "item.item", "Questionnaire.item"),
        ("Questionnaire", "item.item.answerOption", "Questionnaire.item.answerOption"),
        ("Medication", "batch", "http://hl7.org/fhir/StructureDefinition/Medication.batch"),
        ("Observation", "value.ofType(Quantity)", "Quantity"),
    ],
)
def test_a_type_that_an_element_defines_has_fhirs_name(resource: str, path: str, type_name: str) -> None:
    columns = [{"name": "cell", "path": path, "type": type_name, "collection": True}]
    assert run({"resource": resource, "select": [{"column": columns}]}, []) == []
    columns[0].pop("type")
    assert type_name.rpartition("/")[2] in refusal({"resource": resource, "select": [{"column": columns}]}).hint


def test_a_view_of_ten_megabytes_is_refused() -> None:
    assert refusal(view("'" + "x" * 10_000_000 + "'")).code == "VHT-VIEW-LIMIT"


def test_nesting_and_unfolding_are_bounded() -> None:
    index = "0"
    for _ in range(40):  # each level would double the SQL
        index = f"name[{index}].given.count()"
    select: dict[str, Any] = {"column": [{"name": "a", "path": "id"}]}
    for _ in range(40):
        select = {"select": [select]}
    chain = "name" + ".extension('a')" * 250 + ".url"
    for wrong_view in (
        view(index), view("(" * 60 + "1" + ")" * 60), view("+".join("1" * 700)), view(chain),
        {"resource": "Patient", "select": [select]},
    ):  # fmt: skip
        assert refusal(wrong_view).code == "VHT-VIEW-LIMIT"
    for _ in range(400):
        select = {"select": [select]}
    assert refusal({"resource": "Patient", "select": [select]}).code == "VHT-VIEW-SHAPE"


def test_siblings_that_multiply_without_end_are_stopped() -> None:
    siblings = [{"forEach": "name", "column": [{"name": f"n{number}", "path": "family"}]} for number in range(60)]
    with pytest.raises(ViewError) as caught:
        run({"resource": "Patient", "select": siblings}, [PATIENT], max_rows=10_000)
    assert caught.value.code == "VHT-VIEW-LIMIT"


def test_a_long_list_of_codes_is_no_nesting() -> None:
    path = " or ".join(f"id = 'p{number}'" for number in range(300))
    assert run(view(path), [PATIENT]) == [{"cell": True}]


@pytest.mark.parametrize("text", ["'; DROP TABLE x; --", "a'b''c", 'q"uote', "{files}", "back\\slash", "line\nbreak"])
def test_text_in_a_view_stays_text(text: str) -> None:
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    assert run(view(f"'{quoted}'"), [PATIENT]) == [{"cell": text}]
    constant = {"constant": [{"name": "c", "valueString": text}], **view("%c & id")}
    assert run(constant, [PATIENT]) == [{"cell": f"{text}p1"}]
    assert run(view(f"extension('{quoted}').exists()"), [PATIENT]) == [{"cell": False}]


@pytest.mark.parametrize("path", ["read_text('/etc/passwd')", '`id" FROM x; --`', "getenv('HOME')", "`_s0`"])
def test_a_path_names_elements_and_functions_of_fhirpath_only(path: str) -> None:
    assert refusal(view(path)).code in {"VHT-VIEW-FUNCTION", "VHT-VIEW-ELEMENT"}


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM read_json('/proc/self/environ', columns = {'a': 'VARCHAR'})",
        "SELECT * FROM '/etc/passwd'",
        "ATTACH 'other.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "COPY (SELECT 1) TO 'out.csv'",
        "SET enable_external_access = true",
        "SET allowed_paths = ['/etc/passwd']",
        "SET lock_configuration = false",
        "EXPORT DATABASE 'x'",
    ],
)
def test_the_engine_under_a_view_reaches_nothing_but_its_files(statement: str) -> None:
    with spooled([b'{"resourceType": "Patient"}']) as path, locked([path]) as connection:
        assert connection.execute(f"SELECT count(*) FROM read_json('{path}')").fetchall() == [(1,)]  # noqa: S608
        with pytest.raises(duckdb.Error):
            connection.execute(statement)


def test_a_resource_that_is_not_one_is_refused_and_never_a_null_row() -> None:
    for resource in ({}, {"resourceType": 5}, "text"):
        with pytest.raises(InputError) as caught:
            run(view("id"), [resource])  # type: ignore[list-item]
        assert caught.value.code == "VHT-INPUT-FHIR-LINE"
    with pytest.raises(InputError) as caught:
        run(view("name.given", collection=True), [{"resourceType": "Patient", "name": "secret"}])
    assert "secret" not in str(caught.value)


UNREAD = "VHT-INPUT-FHIR-LINE"
LEAVES = [
    ("active", {"active": "x"}, UNREAD),
    ("name.family.first()", {"name": "x"}, UNREAD),
    ("name.family.first()", {"name": {"family": "x"}}, UNREAD),
    ("maritalStatus.text", {"maritalStatus": [{"text": "x"}]}, UNREAD),
    ("active", {"active": "true"}, True),
    ("gender", {"gender": 5}, "5"),
    ("gender", {"gender": {"a": 1}}, '{"a":1}'),
    ("active", {"gender": {"a": 1}}, None),  # the view does not read it
]


@pytest.mark.parametrize(("path", "body", "expected"), LEAVES)
def test_a_value_of_another_json_type_is_refused_where_it_cannot_be_read_and_only_there(
    path: str, body: dict[str, Any], expected: Any
) -> None:
    try:
        [row] = run(view(path), [{"resourceType": "Patient", "id": "p1", **body}])
        got = row["cell"]
    except InputError as error:
        got = error.code
    assert got == expected


def test_the_shipped_definitions_are_those_of_the_models() -> None:
    assert derive() == _definitions()


def test_errors_name_no_path_of_this_machine() -> None:
    error = refusal(view("name.family"))
    assert "/" not in error.message
    assert str(Path.cwd()) not in explain(view("id"))
