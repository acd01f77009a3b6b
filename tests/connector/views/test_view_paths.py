"""What FHIRPath expressions of a view give: dates of unequal precision, references, extensions, boundaries, JSON."""

from typing import Any

import pytest

from connector.views import explain, run
from connector.views.sql.compilation import compile_view
from connector.views.sql.execution import locked, run_plan, spooled

PATIENT = {
    "resourceType": "Patient",
    "id": "p1",
    "birthDate": "1970-06",
    "_birthDate": {"extension": [{"url": "born", "valueDateTime": "1970-06-01T10:00:00Z"}]},
    "deceasedDateTime": "2020-01-01T10:00:00+02:00",
    "name": [
        {
            "family": "O'Brien",
            "given": ["a", None, "b"],
            "_given": [None, {"extension": [{"url": "why", "valueString": "x"}]}, None],
        }
    ],
    "contact": [{"name": {"family": "c"}}, {"gender": "male"}],
    "link": [
        {"other": {"reference": "http://example.org/fhir/Patient/p9/_history/2"}},
        {"other": {"reference": "#contained"}},
        {"other": {"reference": "urn:uuid:abc"}},
        {"other": {"reference": "RelatedPerson/r1"}},
        {"other": {"identifier": {"value": "1"}}},
    ],
}


def column(path: str, resource: dict[str, Any] | None = None, **more: Any) -> Any:
    """The one cell of a view with one column."""
    source = resource or PATIENT
    view = {"resource": source["resourceType"], "select": [{"column": [{"name": "cell", "path": path, **more}]}]}
    return run(view, [source])[0]["cell"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("birthDate < @1971", True),
        ("birthDate < @1970-06-15", None),  # June 1970 may lie on either side
        ("birthDate = @1970-06", True),
        ("birthDate > @1970", None),
        ("birthDate != @1971-01-01", True),
        ("birthDate >= @1970-06", True),
        ("deceased.ofType(dateTime) = @2020-01-01T08:00:00Z", True),
        ("deceased.ofType(dateTime) = @2020-01-01T10:00:00.000+02:00", True),
        ("deceased.ofType(dateTime) > @2020-01-01", None),
        ("deceased.ofType(dateTime) >= @2019-12-31", True),
        ("@T10:00:00 < @T10:00:00.001", True),
        ("birthDate < @1971 and birthDate > @1970", None),
    ],
)
def test_dates_compare_as_far_as_their_precision_goes(path: str, expected: bool | None) -> None:
    assert column(path) is expected


LEAP = {"resourceType": "Observation", "id": "o", "effectiveDateTime": "2016-12-31T23:59:60Z", "valueTime": "23:59:60"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("effective.ofType(dateTime)", "2016-12-31T23:59:60Z"),
        ("effective.ofType(dateTime) > @2016-01-01", True),
        ("effective.ofType(dateTime) > @2016-12-31T23:59:59.999Z", True),
        ("effective.ofType(dateTime) < @2017-01-01T00:00:00Z", True),
        ("effective.ofType(dateTime) = @2017-01-01T00:59:60+01:00", True),
        ("effective.ofType(dateTime) = @2016-12-31T23:59:59Z", False),
        ("effective.ofType(dateTime) > @2016-12-31", None),  # within that day
        ("effective.ofType(dateTime).lowBoundary()", "2016-12-31T23:59:60.000Z"),
        ("effective.ofType(dateTime).highBoundary() > @2016-12-31T23:59:59Z", True),
        ("value.ofType(time) > @T23:59:59.9", True),
        ("value.ofType(time) = @T23:59:60", True),
        ("value.ofType(time).highBoundary()", "23:59:60.999"),
        ("@T10:00:00 = @T10:00:00.00", True),
    ],
)
def test_a_leap_second_lies_between_its_neighbours(path: str, expected: Any) -> None:
    assert column(path, LEAP) == expected


@pytest.mark.parametrize("number", ["60", "59"])
def test_a_constant_may_be_a_leap_second(number: str) -> None:
    at = {"name": "at", "valueInstant": f"2016-12-31T23:59:{number}Z"}
    view = {"resource": "Observation", "constant": [at], "select": [{"column": [{"name": "c", "path": "id"}]}],
            "where": [{"path": "effective.ofType(dateTime) = %at"}]}  # fmt: skip
    assert len(run(view, [LEAP])) == (number == "60")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("@2012-04-15T15:00:00Z = @2012-04-15T10:00:00", None),  # of which zone?
        ("@2012-04-15T15:00:00Z != @2012-04-17T10:00:00", True),  # in none
        ("@2012-04-15T15:00:00 < @2012-04-15T15:00:01", True),
    ],
)
def test_a_time_without_offset_is_of_any_zone_beside_one_with(path: str, expected: bool | None) -> None:
    assert column(path) is expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("1 / 0", None),
        ("1 + 1 / 2", 1.5),
        ("2 * (3 + 4) - 1", 13),
        ("-3 div 2", -1),
        ("5 mod 3", 2),
        ("'a' + 'b' & 'c'", "abc"),
        ("name.family = 'O\\'Brien'", True),
        ("contact.name.family = 'c'", True),
        ("name.given = 'a'", False),  # two against one
        ("name.given.count()", 3),  # one has an extension alone
        ("name.given[1]", None),
        ("name.given[2]", "b"),
        ("name.given.last()", "b"),
        ("name[name.count() - 1].family", "O'Brien"),
        ("name[-1].family", None),
        ("contact.where(name.exists()).name.family", "c"),
        ("contact.exists(gender = 'male')", True),
        ("where(id = 'p1').id", "p1"),
        ("where(id = 'p2').exists()", False),
        ("Patient.id", "p1"),
        ("`id`", "p1"),
        ("deceased.exists() and deceased.ofType(boolean).empty()", True),
        ("true implies active", None),
        ("true xor false", True),
        ("(true xor false) = true", True),
        ("(deceased.exists() xor active.exists()) = (id.exists() and true)", True),
        ("(id.exists() implies active.exists()) != true", True),
        ("%rowIndex + 1", 1),
        ("name.given.join('-')", "a-b"),
    ],
)
def test_operators_and_functions_follow_fhirpath(path: str, expected: Any) -> None:
    assert column(path) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("1.5.lowBoundary()", 1.45),
        ("1.lowBoundary()", 0.5),
        ("(-1.5).highBoundary()", -1.45),
        ("@2020-02.highBoundary()", "2020-02-29"),
        ("@2019.lowBoundary()", "2019-01-01"),
        ("@T10:00:00.5.highBoundary()", "10:00:00.599"),
        ("deceased.ofType(dateTime).lowBoundary()", "2020-01-01T10:00:00.000+02:00"),
    ],
)
def test_boundaries_spread_to_the_next_digit(path: str, expected: Any) -> None:
    assert column(path) == expected


def test_an_integer_in_a_decimal_element_has_no_decimal_places() -> None:
    observation = {"resourceType": "Observation", "id": "o", "valueQuantity": {"value": 7}}
    path = "value.ofType(Quantity).value"
    assert column(f"{path}.lowBoundary()", observation) == 6.5
    assert column(f"{path} + 0.5 > {path}.lowBoundary()", observation) is True


def test_references_of_every_form_give_the_id_they_point_at() -> None:
    assert column("link.other.getReferenceKey()", collection=True) == ["p9", "abc", "r1"]
    assert column("link.other.getReferenceKey(Patient)", collection=True) == ["p9", "abc"]
    assert column("link.other.getReferenceKey(RelatedPerson)", collection=True) == ["abc", "r1"]
    assert column("link.other.getReferenceKey(Group)", collection=True) == []


def test_a_uuid_reference_that_names_another_type_does_not_count() -> None:
    observation = {"resourceType": "Observation", "id": "o", "subject": {"reference": "urn:uuid:g", "type": "Group"}}
    assert column("subject.getReferenceKey(Patient)", observation) is None
    assert column("subject.getReferenceKey(Group)", observation) == "g"


def test_extensions_of_primitives_are_found_beside_them() -> None:
    assert column("birthDate.extension('born').value.ofType(dateTime)") == "1970-06-01T10:00:00Z"
    assert column("name.given.extension('why').value.ofType(string)") == "x"
    assert column("gender.extension('none').exists()") is False


def test_a_declared_complex_type_comes_as_json_and_its_elements_stay_readable() -> None:
    view = {
        "resource": "Patient",
        "select": [
            {
                "column": [
                    {"name": "names", "path": "name", "type": "HumanName", "collection": True},
                    {"name": "family", "path": "name.family"},
                    {"name": "given", "path": "name.given", "collection": True},
                ]
            }
        ],
    }
    assert run(view, [PATIENT]) == [{"names": PATIENT["name"], "family": "O'Brien", "given": ["a", "b"]}]


def test_repeat_walks_any_depth_in_document_order_with_filters_on_the_way() -> None:
    item: dict[str, Any] = {"linkId": "80"}
    for number in reversed(range(80)):
        item = {"linkId": str(number), "item": [item, {"linkId": "no", "text": "skip"}]}
    view = {
        "resource": "QuestionnaireResponse",
        "select": [
            {
                "repeat": ["item.where(linkId != 'no')"],
                "column": [{"name": "at", "path": "%rowIndex"}, {"name": "link", "path": "linkId"}],
                "select": [{"forEachOrNull": "item.where(linkId = 'no')", "column": [{"name": "t", "path": "text"}]}],
            }
        ],
    }
    rows = run(view, [{"resourceType": "QuestionnaireResponse", "id": "q", "item": [item]}])
    assert [(row["at"], row["link"]) for row in rows] == [(number, str(number)) for number in range(81)]
    assert [row["t"] for row in rows] == ["skip"] * 80 + [None]


@pytest.mark.parametrize(
    "paths", [["item.where(%rowIndex = 1)", "answer.item"], ["answer.item", "item.where(%rowIndex = 1)"]]
)
def test_a_path_of_a_repeat_may_ask_for_the_row_it_stands_in_wherever_it_is_listed(paths: list[str]) -> None:
    items = [
        {"linkId": "1", "item": [{"linkId": "1.1"}]},
        {"linkId": "2", "item": [{"linkId": "2.1"}, {"linkId": "2.2"}]},
    ]
    within = [{"repeat": paths, "column": [{"name": "link", "path": "linkId"}]}]
    view = {"resource": "QuestionnaireResponse", "select": [{"forEach": "item", "select": within}]}
    rows = run(view, [{"resourceType": "QuestionnaireResponse", "id": "q", "item": items}])
    assert rows == [{"link": "2.1"}, {"link": "2.2"}]


@pytest.mark.parametrize("number", range(1, 9))
def test_a_text_that_is_spelled_like_a_name_of_the_compilers_stays_as_it_is(number: int) -> None:
    name = f"_x{number}_"
    resource = {"resourceType": "Patient", "id": "p", "maritalStatus": {"text": name, "coding": [{"code": name}]}}
    assert column(f"maritalStatus.where(text = '{name}').exists()", resource) is True
    assert column(f"maritalStatus.where(text = '{name}' and coding.exists(code = '{name}')).text", resource) == name


def test_what_explain_shows_is_what_runs() -> None:
    view = {
        "resource": "Patient",
        "select": [{"forEach": "link.other", "column": [{"name": "key", "path": "getReferenceKey()"}]}],
    }
    import orjson

    with spooled([orjson.dumps(PATIENT)]) as path, locked([path]) as connection:
        for statement in explain(view, [path]).removesuffix(";").split(";\n"):
            result = connection.execute(statement)
        by_hand = result.fetchall()
    with spooled([orjson.dumps(PATIENT)]) as path, locked([path]) as connection:
        assert [tuple(row.values()) for row in run_plan(compile_view(view), connection, [path])] == by_hand
    assert by_hand == [("p9",), (None,), ("abc",), ("r1",), (None,)]


def test_only_what_the_paths_touch_is_read() -> None:
    sql = explain({"resource": "Patient", "select": [{"column": [{"name": "y", "path": "birthDate"}]}]})
    assert '"birthDate"' in sql
    assert "name" not in sql.replace("SELECT", "").replace("columns", "")
    assert sql.count("read_json") == 1
