"""Patient records that replace each other are one person: by whatever chain, from either side, over any intakes."""

import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.fhir_resources import KEY, condition, observation, patient, write

from connector.fhir import IngestReport, Store, ingest, subject_key
from connector.fhir.deletions import Deletions
from connector.fhir.persons import accounts_of, names_patient, persons_of
from connector.fhir.rendering import resources
from connector.fhir.store import Generation
from connector.views.store_tables import stored
from vht_federate.domain.split import bucket_of

AT = datetime(2026, 1, 1, tzinfo=UTC)


def key(number: int) -> str:
    return subject_key(KEY, f"p{number}")


def linked(number: int, *links: tuple[str, int], **more: Any) -> dict[str, Any]:
    said = [{"type": kind, "other": {"reference": f"Patient/p{other}"}} for kind, other in links]
    return patient(number, link=said or None, **more)


def take(root: Path, items: list[Any], **more: Any) -> IngestReport:
    return ingest(write(root / "in", "data.ndjson", items), root / "store", node_key=KEY, dataset="d", **more)


def deleted(root: Path, *numbers: int) -> None:
    entries = [{"request": {"method": "DELETE", "url": f"Patient/p{number}"}} for number in numbers]
    (root / "gone").mkdir(exist_ok=True)
    path = root / "gone" / "gone.ndjson"
    path.write_bytes(orjson.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries}) + b"\n")
    (root / "empty").mkdir(exist_ok=True)
    ingest(root / "empty", root / "store", node_key=KEY, dataset="d", deletions=Deletions((path,), AT))


def current(root: Path) -> Generation:
    generation = Store(root / "store").current()
    assert generation is not None
    return generation


def people(root: Path) -> list[dict[str, Any]]:
    """The table of patients as a cohort reads it."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        rows: list[dict[str, Any]] = (
            connection.sql(f"FROM {stored(current(root))('patient')}").to_arrow_table().to_pylist()
        )
        return sorted(rows, key=lambda row: str(row["subject"]))


def groups(root: Path, *numbers: int) -> set[frozenset[int]]:
    """Which of ``numbers`` are one person."""
    person = {number: persons_of(current(root), [key(number)]) for number in numbers}
    return {frozenset(other for other in numbers if person[other] == person[number]) for number in numbers}


# --- who is one person ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "records",
    [
        [linked(1, ("replaces", 2)), patient(2)],
        [patient(1), linked(2, ("replaced-by", 1))],
        [linked(1, ("replaces", 2)), linked(2, ("replaced-by", 1), active=False)],
    ],
    ids=["the survivor says so", "the old one says so", "both say so"],
)
def test_a_link_from_either_side_makes_one_person_with_the_key_of_the_survivor(
    tmp_path: Path, records: list[Any]
) -> None:
    """Case 15 of the field."""
    take(tmp_path, records)
    [person] = people(tmp_path)
    assert (person["subject"], person["active"]) == (key(1), True)
    assert groups(tmp_path, 1, 2) == {frozenset({1, 2})}


@pytest.mark.parametrize("kind", ["seealso", "refer"])
def test_a_link_to_a_record_that_stays_in_use_joins_nothing(tmp_path: Path, kind: str) -> None:
    take(tmp_path, [linked(1, (kind, 2)), patient(2)])
    assert [person["subject"] for person in people(tmp_path)] == sorted([key(1), key(2)])


def test_chains_and_trees_are_one_person_and_its_key_is_the_record_that_stands(tmp_path: Path) -> None:
    take(tmp_path, [patient(1), linked(2, ("replaced-by", 1)), linked(3, ("replaced-by", 2)), patient(4),
                    linked(5, ("replaces", 4), ("replaced-by", 3)), patient(6)])  # fmt: skip
    assert groups(tmp_path, 1, 2, 3, 4, 5, 6) == {frozenset({1, 2, 3, 4, 5}), frozenset({6})}
    assert [person["subject"] for person in people(tmp_path)] == sorted([key(1), key(6)])


def test_circles_end_and_are_one_person(tmp_path: Path) -> None:
    take(tmp_path, [linked(1, ("replaces", 2)), linked(2, ("replaces", 3)), linked(3, ("replaces", 1)),
                    linked(4, ("replaced-by", 4))])  # fmt: skip
    assert groups(tmp_path, 1, 2, 3, 4) == {frozenset({1, 2, 3}), frozenset({4})}
    circle = [person for person in people(tmp_path) if person["subject"] != key(4)]
    assert [(person["subject"], person["active"]) for person in circle] == [(min(map(key, (1, 2, 3))), True)]


def test_records_that_name_a_survivor_who_is_not_here_are_one_active_person(tmp_path: Path) -> None:
    take(tmp_path, [linked(2, ("replaced-by", 1), active=False), linked(3, ("replaced-by", 1), active=False)])
    [person] = people(tmp_path)
    assert (person["subject"], person["active"]) == (key(1), True)
    take(tmp_path, [patient(1, active=False)])
    assert [row["active"] for row in people(tmp_path)] == [False], "the survivor speaks for the person"


def test_a_record_that_was_replaced_by_nobody_knows_whom_is_not_in_use(tmp_path: Path) -> None:
    nobody = [{"type": "replaced-by", "other": {"identifier": {"value": "1"}}}]
    take(tmp_path, [patient(1, link=nobody), patient(2, link=nobody)])
    assert [person["active"] for person in people(tmp_path)] == [False, False]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["replaces", "replaced-by"]), st.integers(0, 7)),
                max_size=9), st.integers(1, 2))  # fmt: skip
def test_whatever_the_links_persons_are_what_a_plain_search_finds(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, str, int]], intakes: int
) -> None:
    root = tmp_path_factory.mktemp("links")
    said: dict[int, list[tuple[str, int]]] = {number: [] for number in range(8)}
    for number, kind, other in drawn:
        said[number].append((kind, other))
    for part in range(intakes):
        take(root, [linked(number, *links) for number, links in said.items() if number % intakes == part])
    neighbours: dict[int, set[int]] = {number: {number} for number in said}
    for number, links in said.items():
        for _, other in links:
            neighbours[number].add(other)
            neighbours[other].add(number)
    for _ in said:
        neighbours = {
            number: set().union(*(neighbours[other] for other in near)) for number, near in neighbours.items()
        }
    assert groups(root, *said) == {frozenset(near) for near in neighbours.values()}
    rows = people(root)
    assert len(rows) == len({frozenset(near) for near in neighbours.values()})
    expected = {frozenset(near): max(bucket_of(f"p{n}") for n in near) for near in neighbours.values()}
    assert sorted(row["bucket"] for row in rows) == sorted(expected.values())


# --- what a person is like --------------------------------------------------------------------------------------------


def test_a_person_is_what_the_survivor_says_and_dead_if_any_record_says_so(tmp_path: Path) -> None:
    take(tmp_path, [
        linked(1, ("replaces", 2), ("replaces", 3), birthDate=None, gender="female"),
        patient(2, birthDate="1950", gender="male", deceasedDateTime="2012-05"),
        patient(3, birthDate="1951-02-03", deceasedDateTime="2012-09-09"),
    ])  # fmt: skip
    [person] = people(tmp_path)
    born = ("1950-07-01", True) if key(2) < key(3) else ("1951-02-03", False)
    assert (str(person["birth_date"]), person["birth_date_partial"]) == born
    assert (person["gender"], person["deceased"]) == ("female", True)
    assert (str(person["deceased_at"])[:10], str(person["deceased_at_until"])[:10]) == ("2012-05-01", "2012-05-31")


def test_everything_else_is_the_persons(tmp_path: Path) -> None:
    take(tmp_path, [linked(1, ("replaces", 2)), patient(2), patient(3), observation("a", 1), observation("b", 2),
                    observation("c", 3), condition("d", "44054006", "2010-01-01", 2)])  # fmt: skip
    generation = current(tmp_path)
    owners = [item["subject"]["reference"] for item in resources(generation, "Observation")]
    assert sorted(owners) == sorted([f"Patient/{key(1)}"] * 2 + [f"Patient/{key(3)}"])
    assert [item["subject"]["reference"] for item in resources(generation, "Condition")] == [f"Patient/{key(1)}"]
    shown = list(resources(generation, "Patient"))
    assert [item["id"] for item in shown] == sorted([key(1), key(3)])
    assert all(item["meta"]["lastUpdated"] for item in shown)


# --- the split --------------------------------------------------------------------------------------------------------


def test_a_person_has_one_side_of_the_split_and_a_new_id_never_takes_a_trainer_to_the_tests(tmp_path: Path) -> None:
    ids = range(1, 40)
    train, test = (next(n for n in ids if (bucket_of(f"p{n}") >= 33) is side) for side in (True, False))
    take(tmp_path / "a", [linked(train, ("replaces", test)), patient(test)])
    take(tmp_path / "b", [patient(train), linked(test, ("replaces", train))])
    for name in "ab":
        assert [row["bucket"] for row in people(tmp_path / name)] == [bucket_of(f"p{train}")]
    take(tmp_path / "c", [linked(test, ("replaces", train))])  # one of them is named only
    assert [row["bucket"] for row in people(tmp_path / "c")] == [bucket_of(f"p{train}")]
    assert accounts_of(current(tmp_path / "a"), {key(train)}) == {key(train): [key(train)]}
    assert accounts_of(current(tmp_path / "b"), {key(test)}) == {key(test): [key(train)]}


def test_a_budget_is_counted_under_every_id_on_the_persons_side(tmp_path: Path) -> None:
    first, second = itertools.islice((n for n in range(1, 60) if bucket_of(f"p{n}") >= 33), 2)
    take(tmp_path, [linked(first, ("replaces", second)), patient(second), patient(99)])
    accounts = accounts_of(current(tmp_path), {key(first), key(99)})
    assert {person: sorted(ids) for person, ids in accounts.items()} == {key(first): sorted([key(first), key(second)])}


# --- over intakes -----------------------------------------------------------------------------------------------------


def test_a_link_that_comes_later_joins_what_is_held(tmp_path: Path) -> None:
    take(tmp_path, [patient(2), observation("a", 2)])
    assert groups(tmp_path, 1, 2) == {frozenset({1}), frozenset({2})}
    take(tmp_path, [linked(1, ("replaces", 2))])
    assert groups(tmp_path, 1, 2) == {frozenset({1, 2})}
    take(tmp_path, [patient(7)])
    assert groups(tmp_path, 1, 2, 7) == {frozenset({1, 2}), frozenset({7})}
    assert len(current(tmp_path).parts("person")) == 1


def version(number: int, told: int, *links: tuple[str, int]) -> dict[str, Any]:
    return linked(number, *links, meta={"versionId": f"{told}"})


def test_a_newer_version_without_the_link_takes_it_back(tmp_path: Path) -> None:
    take(tmp_path, [version(1, 1, ("replaces", 2)), patient(2)])
    take(tmp_path, [version(1, 2, ("replaces", 3)), patient(3)])
    assert groups(tmp_path, 1, 2, 3) == {frozenset({1, 3}), frozenset({2})}
    take(tmp_path, [version(1, 3)])
    assert groups(tmp_path, 1, 2, 3) == {frozenset({1}), frozenset({2}), frozenset({3})}
    assert len(people(tmp_path)) == 3
    take(tmp_path, [version(1, 2, ("replaces", 2))])
    assert groups(tmp_path, 1, 2) == {frozenset({1}), frozenset({2})}, "an older version says nothing any more"


def test_replacing_the_whole_export_forgets_the_links_of_the_old_one(tmp_path: Path) -> None:
    take(tmp_path, [linked(1, ("replaces", 2)), patient(2)])
    take(tmp_path, [patient(1), patient(2)], replace=True)
    assert groups(tmp_path, 1, 2) == {frozenset({1}), frozenset({2})}


def test_a_link_outlives_the_deletion_of_the_record_that_said_it(tmp_path: Path) -> None:
    """The old record is deleted at the source when a merge is done; an opt-out under its id is still that person's."""
    take(tmp_path, [version(1, 1), version(2, 1, ("replaced-by", 1)), observation("a", 1), observation("b", 2)])
    deleted(tmp_path, 2)
    assert groups(tmp_path, 1, 2) == {frozenset({1, 2})}
    assert names_patient(current(tmp_path), key(2))
    [person] = people(tmp_path)
    assert person["subject"] == key(1)
    assert len(list(resources(current(tmp_path), "Observation"))) == 1, "what was under the old id went with it"
    again = version(2, 2) | {"meta": {"versionId": "2", "lastUpdated": "2026-02-02T00:00:00Z"}}
    take(tmp_path, [again])
    assert groups(tmp_path, 1, 2) == {frozenset({1}), frozenset({2})}, "made again, it says that it is nobody else"


def test_a_person_whose_standing_record_was_deleted_is_not_used_until_it_is_made_again(tmp_path: Path) -> None:
    take(tmp_path, [version(1, 1), version(2, 1, ("replaced-by", 1)), observation("b", 2)])
    deleted(tmp_path, 1)
    assert [(person["subject"], person["active"]) for person in people(tmp_path)] == [(key(1), False)]
    take(tmp_path, [patient(1, meta={"versionId": "2", "lastUpdated": "2026-02-02T00:00:00Z"})])
    assert [(person["subject"], person["active"]) for person in people(tmp_path)] == [(key(1), True)]


def test_the_store_holds_links_by_keyed_hashes_alone(tmp_path: Path) -> None:
    take(tmp_path, [linked(1, ("replaces", 2))])
    tables = [pq.read_table(current(tmp_path).parts(name)[0]) for name in ("patient_link", "person")]
    texts = [text for table in tables for column in table.columns if column.type == "string"
             for text in column.to_pylist()]  # fmt: skip
    assert len(texts) == 3 + 4
    assert {len(text) for text in texts} == {32, 64}


def test_a_generation_written_without_the_tables_opens_as_before(tmp_path: Path) -> None:
    take(tmp_path, [linked(1, ("replaces", 2)), patient(2), observation("a", 2)])
    for table in ("patient_link", "person"):
        [part] = current(tmp_path).parts(table)
        part.unlink()
    assert [person["subject"] for person in people(tmp_path)] == sorted([key(1), key(2)])
    take(tmp_path, [patient(4), linked(3, ("replaces", 4))])
    assert groups(tmp_path, 1, 2, 3, 4) == {frozenset({1}), frozenset({2}), frozenset({3, 4})}


def test_the_store_counts_persons_who_have_a_patient_here(tmp_path: Path) -> None:
    assert take(tmp_path, [linked(1, ("replaces", 2)), patient(3), linked(4, ("replaced-by", 5))]).patients == 3
    assert take(tmp_path, [patient(2), patient(5), patient(6)]).patients == 4
    assert current(tmp_path).counts()["Patient"] == 6
