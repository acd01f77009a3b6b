"""Versions: the newest stands, whenever and in whatever order it comes; what cannot be compared is not guessed."""

import itertools
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.fhir_resources import KEY, condition, observation, patient, prescription, quantity, write

from connector.duckdb_lockdown import locked
from connector.fhir import IngestReport, Store, ingest


def take(tmp_path: Path, items: list[Any], **more: Any) -> IngestReport:
    return ingest(write(tmp_path / "in", "data.ndjson", items), tmp_path / "store", node_key=KEY, dataset="d", **more)


def rows(tmp_path: Path, table: str = "observation") -> list[dict[str, Any]]:
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    return [row for part in generation.parts(table) for row in pq.read_table(part).to_pylist()]


def version(number: int, value: float | None = None, ident: str = "o1", **meta: Any) -> dict[str, Any]:
    stamp = {"versionId": str(number), "lastUpdated": f"2020-01-01T00:00:{number:02d}Z"} | meta
    kept = {name: text for name, text in stamp.items() if text is not None}
    return observation(ident, meta=kept, valueQuantity=quantity(100 + number if value is None else value, "mm[Hg]"))


def balanced(report: IngestReport) -> bool:
    parts = report.accepted + report.quarantined + report.duplicate + report.superseded
    by_file = [
        file.lines == file.accepted + file.quarantined + file.duplicate + file.superseded for file in report.by_file
    ]
    return report.lines == parts and all(by_file) and report.lines == sum(file.lines for file in report.by_file)


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_the_newest_of_one_file_stands_in_whatever_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    report = take(tmp_path, [version(number) for number in order])
    assert (report.accepted, report.superseded, report.replaced) == (1, 2, 0)
    assert [row["number"] for row in rows(tmp_path)] == [103.0]
    assert balanced(report)


def test_a_newer_version_replaces_what_is_held_and_nothing_else(tmp_path: Path) -> None:
    take(tmp_path, [patient(1), version(1), version(1, ident="o2"), observation("plain")])
    before = Store(tmp_path / "store").current()
    report = take(tmp_path, [version(2), patient(1)])
    assert (report.accepted, report.replaced, report.duplicate, report.changed) == (1, 1, 1, True)
    assert sorted(row["number"] for row in rows(tmp_path)) == [101.0, 102.0, 140.0]
    assert [row["replaced"] for row in rows(tmp_path, "resource")].count(1) == 1
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    assert generation.counts() == {"Observation": 3, "Patient": 1}
    assert before is not None
    old = [row["number"] for part in before.parts("observation") for row in pq.read_table(part).to_pylist()]
    assert sorted(old) == [101.0, 101.0, 140.0], "a cohort that is being read keeps its state"


def test_an_older_version_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    take(tmp_path, [version(3)])
    report = take(tmp_path, [version(2), version(3)])
    assert (report.accepted, report.superseded, report.duplicate, report.changed) == (0, 1, 1, False)
    assert [row["number"] for row in rows(tmp_path)] == [103.0]
    assert report.by_file[0].superseded == 1
    assert balanced(report)


def test_reading_all_versions_again_changes_nothing(tmp_path: Path) -> None:
    items = [version(1), version(4), version(2), observation("o9")]
    take(tmp_path, items)
    again = take(tmp_path, items)
    assert (again.accepted, again.superseded, again.duplicate, again.changed) == (0, 2, 2, False)


def test_what_changed_often_counts_its_versions(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        take(tmp_path, [version(number)])
    [row] = rows(tmp_path, "resource")
    assert (row["replaced"], row["version"]) == (2, 3)
    assert len(rows(tmp_path)) == 1


def test_a_number_of_a_version_is_compared_as_a_number_where_there_is_no_time(tmp_path: Path) -> None:
    report = take(tmp_path, [version(9, lastUpdated=None), version(10, lastUpdated=None)])
    assert (report.accepted, report.superseded) == (1, 1)
    assert [row["number"] for row in rows(tmp_path)] == [110.0]


def test_two_contents_of_one_moment_contradict_each_other(tmp_path: Path) -> None:
    report = take(tmp_path, [version(1, 100.0), version(1, 200.0)])
    assert (report.accepted, report.reasons) == (1, {"conflicting-content": 1})
    opaque = [version(5, 100.0, "o2", versionId="a"), version(5, 200.0, "o2", versionId="b")]
    assert take(tmp_path, opaque).reasons == {"conflicting-content": 1}
    assert sorted(row["number"] for row in rows(tmp_path)) == [100.0, 100.0]


def test_a_content_without_version_neither_gives_way_nor_takes_the_place(tmp_path: Path) -> None:
    take(tmp_path, [observation("o1")])
    assert take(tmp_path, [version(7)]).reasons == {"conflicting-content": 1}
    take(tmp_path, [version(7, ident="o2")])
    assert take(tmp_path, [observation("o2")]).reasons == {"conflicting-content": 1}
    assert sorted(row["number"] for row in rows(tmp_path)) == [107.0, 140.0]


@pytest.mark.parametrize(
    ("meta", "reason"),
    [({"lastUpdated": "2020"}, "format"), ({"lastUpdated": 7}, "type"), ({"versionId": 7}, "type"), ("v1", "type")],
)
def test_a_version_that_is_none_quarantines_its_line(tmp_path: Path, meta: Any, reason: str) -> None:
    assert take(tmp_path, [observation("o1", meta=meta)]).reasons == {reason: 1}


def test_a_resource_that_changes_its_values_leaves_no_old_rows(tmp_path: Path) -> None:
    many = [{"code": {"coding": [{"code": str(n)}]}, "valueQuantity": quantity(n, "mm[Hg]")} for n in range(5)]
    take(tmp_path, [version(1) | {"component": many}])
    assert len(rows(tmp_path)) == 6
    second = version(2)
    del second["valueQuantity"]
    take(tmp_path, [second])
    assert [(row["part"], row["number"]) for row in rows(tmp_path)] == [(0, None)]


def test_entered_in_error_is_counted_and_takes_the_place_of_what_was_wrong(tmp_path: Path) -> None:
    wrong = {"coding": [{"code": "entered-in-error"}]}
    report = take(
        tmp_path,
        [
            version(1),
            condition("c", "38341003", "2009", verificationStatus=wrong),
            prescription("m", "C09AA05", "2009", status="entered-in-error"),
            observation("o9", status="entered-in-error"),
        ],
    )
    assert (report.accepted, report.entered_in_error) == (4, 3)
    later = take(tmp_path, [version(2) | {"status": "entered-in-error"}])
    assert (later.entered_in_error, later.replaced) == (1, 1)
    assert {row["status"] for row in rows(tmp_path)} == {"entered-in-error"}
    assert report.to_dict()["entered_in_error"] == 3


def test_a_store_from_before_versions_is_read_on(tmp_path: Path) -> None:
    take(tmp_path, [observation("o1")])
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    [part] = generation.parts("resource")
    pq.write_table(pq.read_table(part).drop_columns(["updated", "version", "replaced"]), part)
    report = take(tmp_path, [observation("o1"), version(1, ident="o2")])
    assert (report.accepted, report.duplicate) == (1, 1)
    assert take(tmp_path, [version(2, ident="o2"), version(3)]).reasons == {"conflicting-content": 1}
    assert sorted(row["number"] for row in rows(tmp_path)) == [102.0, 140.0]


def test_an_intake_that_takes_long_shows_no_progress_of_the_engine() -> None:
    with locked([]) as connection:
        assert connection.execute("SELECT current_setting('enable_progress_bar')").fetchone() == (False,)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["o1", "o2", "o3"]), st.integers(1, 9)), min_size=1, max_size=6),
        min_size=1,
        max_size=3,
    )
)
def test_after_any_intakes_the_newest_that_was_seen_stands(
    tmp_path_factory: pytest.TempPathFactory, intakes: list[list[tuple[str, int]]]
) -> None:
    folder = tmp_path_factory.mktemp("versions")
    newest: dict[str, int] = {}
    for seen in intakes:
        report = take(folder, [version(number, ident=ident) for ident, number in seen])
        fresh = {ident for ident, number in seen if number > newest.get(ident, 0)}
        assert balanced(report)
        assert (report.accepted, report.replaced) == (len(fresh), len(fresh & newest.keys()))
        assert not report.reasons
        for ident, number in seen:
            newest[ident] = max(newest.get(ident, 0), number)
    assert sorted(row["number"] for row in rows(folder)) == sorted(100.0 + number for number in newest.values())
