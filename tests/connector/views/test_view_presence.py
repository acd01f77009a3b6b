"""An element is there by its value or by its extensions alone; a null among values keeps its place."""

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from connector.views import explain, run

REASON = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"


def why(reason: str) -> dict[str, Any]:
    return {"extension": [{"url": REASON, "valueCode": reason}]}


PATIENT = {
    "resourceType": "Patient",
    "id": "p1",
    "_birthDate": why("unknown"),
    "_deceasedDateTime": why("asked-declined"),
    "name": [
        {"given": [None, "Ann"], "_given": [why("masked"), None], "_family": why("masked")},
        {"family": "Lee", "_given": [why("masked"), why("unknown")]},
        {"given": ["Bo"], "_given": [None, why("unknown")]},
    ],
    "gender": "female",
    "_gender": {"id": "g"},
    "contact": [{"gender": "male"}, {"_gender": why("unknown")}, {}],
}


def column(path: str, resource: dict[str, Any] = PATIENT, **more: Any) -> Any:
    view = {"resource": resource["resourceType"], "select": [{"column": [{"name": "cell", "path": path, **more}]}]}
    return run(view, [resource])[0]["cell"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("birthDate.exists()", True),
        ("birthDate.empty()", False),
        ("birthDate.count()", 1),
        ("birthDate", None),
        ("birthDate = @1970", None),
        (f"birthDate.extension('{REASON}').value.ofType(code)", "unknown"),
        ("birthDate.first().exists()", True),
        ("birthDate[0].exists()", True),
        ("birthDate[1].exists()", False),
        ("birthDate.where($this.exists()).exists()", True),
        ("birthDate.where($this = @1970).exists()", False),
        ("birthDate.exists($this = @1970)", False),
        ("deceased.exists()", True),
        ("deceased.ofType(dateTime).exists()", True),
        ("deceased.ofType(boolean).exists()", False),
        (f"deceased.ofType(dateTime).extension('{REASON}').value.ofType(code)", "asked-declined"),
        ("gender.count()", 1),
        ("active.exists()", False),
        ("id.exists()", True),
        ("name.given.count()", 6),
        ("name.given.first()", None),
        ("name.given.first().exists()", True),
        ("name.given[1]", "Ann"),
        ("name.given[0].exists()", True),
        ("name.given[6].exists()", False),
        ("name.given[-1].exists()", False),
        ("name.given.last().exists()", True),
        ("name[1].given.count()", 2),
        ("name[1].given.exists()", True),
        ("name.where(given.count() = 2 and given.exists($this = 'Bo')).given[0]", "Bo"),
        ("name.given.where($this.exists()).count()", 6),
        ("name.given.where($this = 'Ann').count()", 1),
        ("name.given.join(',')", "Ann,Bo"),
        ("name.family.count()", 2),
        ("name.family[0].exists()", True),
        ("name.family[1]", "Lee"),
        ("name.family.first()", None),
        ("name.exists(family.exists() and family.count() = 1)", True),
        ("name[0].given = 'Ann'", False),  # two elements against one
        ("contact.gender.count()", 2),
        ("contact.gender[1].exists()", True),
        ("contact.gender.last()", None),
        ("contact.where(gender.exists()).count()", 2),
    ],
)
def test_functions_see_elements_and_columns_values(path: str, expected: Any) -> None:
    assert column(path) == expected


def test_a_collection_column_holds_the_values() -> None:
    assert column("name.given", collection=True) == ["Ann", "Bo"]
    assert column("birthDate", collection=True) == []


def test_every_element_has_its_row_and_its_number() -> None:
    below = [{"name": "at", "path": "%rowIndex"}, {"name": "one", "path": "$this"},
             {"name": "there", "path": "$this.exists()"}]  # fmt: skip
    for iteration in ("forEach", "forEachOrNull"):
        view = {"resource": "Patient", "select": [{iteration: "name[0].given", "column": below}]}
        rows = run(view, [PATIENT])
        assert [tuple(row.values()) for row in rows] == [(0, None, True), (1, "Ann", True)]
    view = {"resource": "Patient", "select": [{"forEachOrNull": "name[7].given", "column": below}]}
    assert [tuple(row.values()) for row in run(view, [PATIENT])] == [(0, None, False)]


def test_nothing_beside_a_primitive_is_read_unless_elements_are_asked_for() -> None:
    view = {"resource": "Patient", "select": [{"column": [{"name": "cell", "path": "birthDate > @1970"}]}]}
    assert "_birthDate" not in explain(view)
    view["select"][0]["column"].append({"name": "there", "path": "birthDate.exists()"})  # type: ignore[index]
    assert "_birthDate" in explain(view)


def test_a_collection_is_null_in_the_row_without_an_element_and_empty_in_one_with() -> None:
    columns = [{"name": "given", "path": "given", "collection": True},
               {"name": "fixed", "path": "'x'", "collection": True},
               {"name": "none", "path": "period.start.where(false)", "collection": True}]  # fmt: skip
    nested = {"forEachOrNull": "name", "select": [{"column": columns}]}
    by_union = {"forEachOrNull": "name", "unionAll": [{"column": columns}]}
    people = [{"resourceType": "Patient", "id": "p1"}, {"resourceType": "Patient", "id": "p2", "name": [{"text": "a"}]}]
    for select in ({"forEachOrNull": "name", "column": columns}, nested, by_union):
        rows = run({"resource": "Patient", "select": [select]}, people)
        assert rows == [{"given": None, "fixed": None, "none": None}, {"given": [], "fixed": ["x"], "none": []}]


_item = st.one_of(st.none(), st.sampled_from(["a", "b"]))
_beside = st.one_of(st.none(), st.just(why("masked")))


@given(values=st.lists(_item, max_size=4), extensions=st.lists(_beside, max_size=4), position=st.integers(0, 4))
def test_positions_are_those_of_both_lists_together(
    values: list[str | None], extensions: list[dict[str, Any] | None], position: int
) -> None:
    name: dict[str, Any] = {"text": "n"} | ({"given": values} if values else {})
    name |= {"_given": extensions} if extensions else {}
    padded = [*values, *[None] * (len(extensions) - len(values))]
    expected = padded[position] if position < len(padded) else None
    patient = {"resourceType": "Patient", "id": "p", "name": [name]}
    columns = [{"name": "n", "path": "name.given.count()"}, {"name": "item", "path": f"name[0].given[{position}]"}]
    assert run({"resource": "Patient", "select": [{"column": columns}]}, [patient]) == [
        {"n": len(padded), "item": expected}
    ]
