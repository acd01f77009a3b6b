"""What a source deleted leaves the store, is counted, and does not come back with an older version."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.fhir_resources import KEY, observation, patient

from connector.fhir import IngestReport, Store, ingest
from connector.fhir.deletions import Deletions, read_deletions

AT = datetime(2024, 6, 1, tzinfo=UTC)
OLD, NEW = {"lastUpdated": "2024-01-01T00:00:00Z"}, {"lastUpdated": "2024-09-01T00:00:00Z"}


def bundle(*urls: str, **more: Any) -> dict[str, Any]:
    entries = [{"request": {"method": "DELETE", "url": url}, **more} for url in urls]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


def listed(folder: Path, *lines: dict[str, Any] | str, at: datetime = AT) -> Deletions:
    folder.mkdir(exist_ok=True)
    path = folder / "deleted.ndjson"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return Deletions((path,), at)


class Hospital:
    def __init__(self, root: Path) -> None:
        self.root, self.taken = root, 0

    def take(
        self, resources: Iterable[dict[str, Any]] = (), deletions: Deletions | None = None, **more: Any
    ) -> IngestReport:
        self.taken += 1
        folder = self.root / f"in-{self.taken}"
        folder.mkdir()
        lines = [json.dumps(resource) + "\n" for resource in resources]
        if lines:
            (folder / "all.ndjson").write_text("".join(lines))
        return ingest(folder, self.root / "store", node_key=KEY, dataset="d", deletions=deletions, **more)

    @property
    def counts(self) -> dict[str, int]:
        current = Store(self.root / "store").current()
        return {kind: count for kind, count in (current.counts() if current else {}).items() if count}

    def rows(self, table: str) -> int:
        import pyarrow.parquet as pq

        current = Store(self.root / "store").current()
        assert current is not None
        return sum(pq.read_metadata(part).num_rows for part in current.parts(table))


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    """Three patients with two values each, dated before the deletions."""
    hospital = Hospital(tmp_path)
    hospital.take([patient(number, meta=OLD) for number in range(3)])
    hospital.take([observation(f"o{number}", number % 3, meta=OLD) for number in range(6)])
    return hospital


def deletions(hospital: Hospital, *urls: str, **more: Any) -> Deletions:
    return listed(hospital.root / "lists", bundle(*urls), **more)


def test_a_deleted_resource_leaves_every_table_and_is_counted(hospital: Hospital) -> None:
    before = hospital.rows("observation")
    report = hospital.take(deletions=deletions(hospital, "Observation/o1", "Observation/never-held"))
    assert (report.deleted, report.changed, report.lines) == (1, True, 0)
    assert hospital.counts == {"Patient": 3, "Observation": 5}
    assert hospital.rows("observation") == before - before // 6
    assert hospital.rows("resource") == 8


def test_the_same_deletions_again_change_nothing(hospital: Hospital) -> None:
    hospital.take(deletions=deletions(hospital, "Observation/o1", "Patient/p2"))
    before = Store(hospital.root / "store").current()
    again = hospital.take(deletions=deletions(hospital, "Observation/o1", "Patient/p2"))
    after = Store(hospital.root / "store").current()
    assert (again.deleted, again.changed) == (0, False)
    assert [generation.number for generation in (before, after) if generation] == [before.number if before else 0] * 2


@pytest.mark.parametrize("meta", [OLD, {"source": "urn:system"}])
def test_an_older_version_does_not_bring_it_back(hospital: Hospital, meta: dict[str, str]) -> None:
    hospital.take(deletions=deletions(hospital, "Observation/o1"))
    report = hospital.take([observation("o1", 1, meta=meta, status="amended")])
    assert (report.superseded, report.accepted, report.changed) == (1, 0, False)
    assert hospital.counts["Observation"] == 5


def test_a_version_after_the_deletion_does_and_stays_when_the_old_list_comes_again(hospital: Hospital) -> None:
    lists = deletions(hospital, "Observation/o1")
    hospital.take(deletions=lists)
    assert hospital.take([observation("o1", 1, meta=NEW)]).accepted == 1
    again = hospital.take([observation("o1", 1, meta=OLD)], lists)
    assert (again.deleted, again.superseded, hospital.counts["Observation"]) == (0, 1, 6)
    later = hospital.take(deletions=deletions(hospital, "Observation/o1", at=AT + timedelta(days=300)))
    assert (later.deleted, hospital.counts["Observation"]) == (1, 5)


def test_a_deleted_patient_takes_along_all_that_was_said_of_them(hospital: Hospital) -> None:
    report = hospital.take(deletions=deletions(hospital, "Patient/p1"))
    assert report.deleted == 3
    assert hospital.counts == {"Patient": 2, "Observation": 4}
    late = hospital.take([observation("late", 1, meta=NEW), observation("other", 2, meta=NEW)])
    assert (late.superseded, late.accepted) == (1, 1)
    back = hospital.take([patient(1, meta=NEW), observation("late", 1, meta=NEW), observation("o1", 1, meta=OLD)])
    assert (back.accepted, back.deleted) == (3, 0)
    assert hospital.counts == {"Patient": 3, "Observation": 7}


def test_in_one_intake_the_newer_of_a_version_and_a_deletion_stands(hospital: Hospital) -> None:
    lists = deletions(hospital, "Observation/o1", "Observation/o2", "Observation/fresh", "Observation/fresher")
    lines = [observation("fresh", 0, meta=OLD), observation("fresher", 0, meta=NEW), observation("o2", 2, meta=NEW)]
    report = hospital.take(lines, lists)
    assert (report.accepted, report.superseded, report.replaced, report.deleted) == (2, 1, 1, 1)
    assert hospital.counts["Observation"] == 6


def test_a_crash_before_the_new_state_stands_leaves_the_old_one(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = deletions(hospital, "Patient/p1")
    with monkeypatch.context() as crashing:
        crashing.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
        with pytest.raises(OSError, match="power cut"):
            hospital.take(deletions=lists)
    assert hospital.counts == {"Patient": 3, "Observation": 6}
    assert hospital.take(deletions=lists).deleted == 3


def test_an_entry_may_say_when(hospital: Hospital) -> None:
    entries = bundle("Observation/o1", response={"lastModified": "2023-01-01T00:00:00Z"})
    report = hospital.take(deletions=listed(hospital.root / "lists", entries))
    assert (report.deleted, hospital.counts["Observation"]) == (0, 6)


@pytest.mark.parametrize("response", [{"etag": 'W/"2"'}, {}])
def test_a_resource_made_again_before_its_deletion_was_told_stands_by_its_version(
    hospital: Hospital, response: dict[str, str]
) -> None:
    url = "Observation/o1" if response else "Observation/o1/_history/2"
    lists = listed(hospital.root / "lists", bundle(url, response=response))
    report = hospital.take([observation("o1", 1, meta=OLD | {"versionId": "3"})], lists)
    assert (report.accepted, report.deleted, hospital.counts["Observation"]) == (1, 0, 6)
    again = hospital.take([observation("o1", 1, meta=OLD | {"versionId": "1"}, status="amended")])
    assert (again.superseded, hospital.counts["Observation"]) == (1, 6)
    newer = listed(hospital.root / "lists", bundle("Observation/o1/_history/4"))
    assert hospital.take(deletions=newer).deleted == 1


def test_a_whole_new_export_forgets_what_was_deleted(hospital: Hospital) -> None:
    hospital.take(deletions=deletions(hospital, "Patient/p1"))
    report = hospital.take([patient(1, meta=OLD)], replace=True)
    assert (report.accepted, hospital.counts) == (1, {"Patient": 1})


def test_what_cannot_be_read_is_set_aside_and_the_rest_counts(hospital: Hospital) -> None:
    posted = {"resourceType": "Bundle", "entry": [{"request": {"method": "POST", "url": "Patient/p0"}}]}
    lists = listed(
        hospital.root / "lists",
        "no json",
        bundle("Patient?identifier=7"),
        posted,
        "",
        '{"entry": 7}',
        bundle("https://ehr.example/fhir/Observation/o1/_history/3", "Practitioner/dr"),
    )
    report = hospital.take(deletions=lists)
    assert (report.reasons, report.quarantined, report.lines) == ({"unreadable-deletion": 4}, 4, 4)
    assert (report.deleted, report.by_file[0].name) == (1, "deleted.ndjson")
    lines = {line.number: line for line in read_deletions(lists.files[0], AT)}
    assert [(deletion.type, deletion.id) for deletion in lines[6].gone] == [("Observation", "o1")]
    assert [(number, line.unreadable) for number, line in lines.items()] == [(1, 1), (2, 1), (3, 1), (5, 1), (6, 0)]


def read(folder: Path, *entries: Any) -> tuple[list[tuple[str, str, datetime, int | None]], int]:
    """What one line with these entries lists, and how many of them are unreadable."""
    lists = listed(folder, {"resourceType": "Bundle", "type": "transaction", "entry": list(entries)})
    [line] = read_deletions(lists.files[0], AT)
    return [(deletion.type, deletion.id, deletion.at, deletion.version) for deletion in line.gone], line.unreadable


def entry(url: Any, **more: Any) -> dict[str, Any]:
    return {"request": {"method": "DELETE", "url": url}, **more}


@pytest.mark.parametrize(
    "response",
    ["204", "", 204, None, True, [], ["204"], {}, {"etag": 7}, {"etag": '"x"'}, {"lastModified": 7},
     {"lastModified": "yesterday"}, {"lastModified": "2024-01-01T00:00:00"}, {"lastModified": {"a": 1}},
     {"lastModified": "0001-01-01T00:00:00+14:00"}, {"lastModified": "9999-12-31T23:59:59-12:00"}],
)  # fmt: skip
def test_a_response_that_says_nothing_usable_takes_nothing_from_the_deletion(tmp_path: Path, response: Any) -> None:
    assert read(tmp_path, entry("Patient/p1", response=response)) == ([("Patient", "p1", AT, None)], 0)


@pytest.mark.parametrize(
    "url",
    ["Patient/p1", "/Patient/p1", "https://ehr.example/fhir/r4/Patient/p1", "http://127.0.0.1:8080/Patient/p1",
     "https://ehr.example/Fhir/Observation/x/Patient/p1"],
)  # fmt: skip
def test_an_address_may_be_relative_rooted_or_absolute(tmp_path: Path, url: str) -> None:
    assert read(tmp_path, entry(url, fullUrl="https://ehr.example/fhir/Observation/o1")) == (
        [("Patient", "p1", AT, None)],
        0,
    )
    assert read(tmp_path, entry(f"{url}/_history/7"))[0] == [("Patient", "p1", AT, 7)]


@pytest.mark.parametrize(
    "url",
    ["List/a_b", "/List/a_b", "https://ehr.example/fhir/List/a_b", "Practitioner/dr", "Practitioner/Patient",
     "NoSuchType/1", "Practitioner?identifier=Patient/p1", "Device/" + "x" * 5000],
)  # fmt: skip
def test_a_type_that_is_not_kept_is_passed_over_whatever_its_id(tmp_path: Path, url: str) -> None:
    odd = {"request": {"method": "POST", "url": url}}
    assert read(tmp_path, entry(url), odd, entry("Patient/p1")) == ([("Patient", "p1", AT, None)], 0)


ODD: list[Any] = [
    "Patient/p1", 7, None, [], {}, {"request": "DELETE Patient/p1"}, {"request": []},
    {"fullUrl": "https://ehr.example/fhir/Patient/p1"}, {"request": {"method": "DELETE"}},
    {"request": {"method": "delete", "url": "Patient/p1"}}, {"request": {"method": ["DELETE"], "url": "Patient/p1"}},
    {"request": {"url": "Patient/p1"}}, *map(entry, [
        None, 7, ["Patient/p1"], "", "/", "Patient", "/Patient", "Patient/", "Patient/a_b", "//Patient/p1/x",
        "Patient?identifier=7", "/Patient?_id=p1", "patient/p1", "Patient%2Fp1", "urn:uuid:7", "Patient/" + "x" * 65,
        "Patient/p1/Observation/o_1", "https://ehr.example/fhir/Patient/Abc/Def/ghi", "ftp://h/Patient/p1",
        "Patient/p1\n", "Patient/../Patient/p1", "Patient/p\u0661",
    ]),
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_an_entry_that_cannot_be_understood_is_counted_and_takes_no_other_with_it(tmp_path: Path, odd: Any) -> None:
    deleted, unreadable = read(tmp_path, entry("Observation/o1"), odd, entry("Patient/p1"))
    assert [deletion[:2] for deletion in deleted] == [("Observation", "o1"), ("Patient", "p1")]
    assert unreadable == 1


@pytest.mark.parametrize(
    ("line", "unreadable"),
    [('{"resourceType": "Bundle", "type": "transaction"}', 0), ('{"resourceType": "Bundle", "entry": []}', 0),
     ('{"resourceType": "OperationOutcome"}', 1), ('{"resourceType": "Bundle", "entry": "Patient/p1"}', 1),
     ('{"resourceType": "Bundle", "entry": {"request": 1}}', 1), ("[]", 1), ('"Bundle"', 1), ("null", 1), ("7", 1),
     ("[" * 100_000, 1), ('{"resourceType": "Bundle", "entry": [', 1), ("   ", 0)],
)  # fmt: skip
def test_a_line_is_a_list_of_deletions_or_counts_as_one_that_cannot_be_read(
    tmp_path: Path, line: str, unreadable: int
) -> None:
    lists = listed(tmp_path, line, bundle("Patient/p1"))
    listings = list(read_deletions(lists.files[0], AT))
    assert sum(listing.unreadable for listing in listings) == unreadable
    assert [deletion.id for deletion in listings[-1].gone] == ["p1"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=12) | st.sampled_from(["DELETE", "Patient/p1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["request", "response", "method", "url", "etag", "lastModified"]), inner)
    ),
    max_leaves=8,
)


@given(odd=st.lists(anything, max_size=4))
def test_whatever_else_is_listed_a_deletion_in_order_counts(tmp_path_factory: Any, odd: list[Any]) -> None:
    deleted, unreadable = read(tmp_path_factory.mktemp("odd"), *odd, entry("Condition/c1"))
    assert deleted[-1][:2] == ("Condition", "c1")
    assert len(deleted) - 1 + unreadable <= len(odd)


def test_a_hundred_thousand_entries_on_one_line_are_judged_one_by_one(hospital: Hospital) -> None:
    entries = [entry(f"Observation/never-{number}") for number in range(100_000)]
    entries[50_000], entries[60_000], entries[-1] = entry("Patient/a_b"), entry("List/a_b"), entry("Patient/p1")
    lists = listed(hospital.root / "lists", {"resourceType": "Bundle", "entry": entries})
    [line] = read_deletions(lists.files[0], AT)
    assert (len(line.gone), line.unreadable) == (99_998, 1)
    report = hospital.take(deletions=lists)
    assert (report.deleted, report.reasons, report.lines) == (3, {"unreadable-deletion": 1}, 1)
    assert hospital.counts == {"Patient": 2, "Observation": 4}
