"""An export as several hospitals: every resource follows its patient, every line is accounted for."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.places import SHARED
from typer.testing import CliRunner

from vht_federate.cli import app
from vht_federate.domain.split import bucket_of, is_test
from vht_federate.errors import InputError
from vht_federate.samples import export
from vht_federate.samples.split import hospital_of, split_export

GSD = SHARED / "data" / "gsd_r4_ndjson.tgz"
MALFORMED = (b'{"resourceType":"../../Observation","id":"x"}', b'{"resourceType":7}', b'{"resourceType":"Obs', b"[]")
FORMS = ("Patient/{}", "urn:uuid:{}", "https://fhir.example.org/r4/Patient/{}", "Patient/{}/_history/2")


def resources(patients: int) -> list[dict[str, Any]]:
    """Patients with two Observations, a Condition and a Procedure each, in four forms of reference."""
    entries: list[dict[str, Any]] = []
    for number in range(patients):
        subject = {"reference": FORMS[number % len(FORMS)].format(f"p-{number}")}
        entries.append({"resourceType": "Patient", "id": f"p-{number}"})
        for kind in ("Observation", "Observation", "Condition", "Procedure"):
            entries.append({"resourceType": kind, "id": f"{kind}-{len(entries)}", "subject": subject})
    return entries


def files_of(content: list[dict[str, Any]]) -> dict[str, bytes]:
    lines: dict[str, list[bytes]] = {}
    for resource in content:
        lines.setdefault(f"{resource['resourceType']}.ndjson", []).append(json.dumps(resource).encode())
    return {name: b"\n".join(part) + b"\n" for name, part in lines.items()}


def folder_of(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def archive_of(files: dict[str, bytes], path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def written(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("*/*.ndjson"))}


def test_every_resource_lies_with_its_patient_in_whatever_form_it_refers(tmp_path: Path) -> None:
    split = split_export(folder_of(files_of(resources(60)), tmp_path / "in"), tmp_path / "out", hospitals=4)
    assert sum(hospital.patients for hospital in split.hospitals) == 60
    for number, hospital in enumerate(split.hospitals, 1):
        folder = tmp_path / "out" / hospital.name
        own = {json.loads(line)["id"] for line in (folder / "Patient.ndjson").read_bytes().splitlines()}
        assert own == {f"p-{i}" for i in range(60) if hospital_of(f"p-{i}", 4) == number}
        assert hospital.resources == {"Patient": len(own), "Observation": 2 * len(own), "Condition": len(own)}
        for line in (folder / "Observation.ndjson").read_bytes().splitlines():
            assert any(
                form.format(patient_id) == json.loads(line)["subject"]["reference"]
                for patient_id in own
                for form in FORMS
            )


def hospital_lines(out: Path) -> int:
    return sum(content.count(b"\n") for content in written(out).values())


def test_each_hospital_has_every_medication_that_its_prescriptions_may_name(tmp_path: Path) -> None:
    medications = [{"resourceType": "Medication", "id": name, "code": {}} for name in ("a", "b")]
    folder = folder_of(files_of([*resources(20), *medications]), tmp_path / "in")
    split = split_export(folder, tmp_path / "out", hospitals=3)
    assert (split.shared, split.unread) == ({"Medication": 2}, {"Procedure": 20})
    for hospital in split.hospitals:
        lines = (tmp_path / "out" / hospital.name / "Medication.ndjson").read_bytes().splitlines()
        assert [json.loads(line)["id"] for line in lines] == ["a", "b"]
        assert hospital.resources["Medication"] == 2


def test_a_folder_a_compressed_folder_and_an_archive_give_the_same_bytes(tmp_path: Path) -> None:
    files = files_of(resources(40))
    zipped = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    split_export(folder_of(files, tmp_path / "plain"), tmp_path / "a", hospitals=3)
    split_export(folder_of(zipped, tmp_path / "zipped"), tmp_path / "b", hospitals=3)
    split_export(archive_of(files, tmp_path / "export.tgz"), tmp_path / "c", hospitals=3)
    assert written(tmp_path / "a") == written(tmp_path / "b") == written(tmp_path / "c")
    lines = [line for content in written(tmp_path / "a").values() for line in content.splitlines()]
    expected = [line for name, content in files.items() if "Procedure" not in name for line in content.splitlines()]
    assert sorted(lines) == sorted(expected)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                b'{"resourceType":"Observation","id":"o","subject":{"reference":"Patient/p-1"}}',
                b'{"resourceType":"Observation","id":"o","subject":{"reference":"Patient/nobody"}}',
                b'{"resourceType":"Condition","id":"c","subject":{"reference":"Group/p-1"}}',
                b'{"resourceType":"Encounter","id":"e"}',
                b'{"resourceType":"Medication","id":"m"}',
                b'{"resourceType":"Procedure","id":"r","subject":{"reference":"Patient/p-1"}}',
                *MALFORMED,
                b"",
            ]
        ),
        max_size=20,
    )
)
def test_every_line_is_written_once_or_counted_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    place = tmp_path_factory.mktemp("lines")
    files = {"Patient.ndjson": b'{"resourceType":"Patient","id":"p-1"}\n', "mixed.ndjson": b"\n".join(lines)}
    split = split_export(folder_of(files, place / "in"), place / "out", hospitals=2)
    kept = sum(sum(hospital.resources.values()) for hospital in split.hospitals)
    assert split.lines == 1 + sum(1 for line in lines if line)
    shared = sum(split.shared.values())
    assert kept == hospital_lines(place / "out")
    kept -= 2 * shared
    assert split.lines == kept + shared + sum(split.unread.values()) + sum(split.stray.values()) + split.malformed
    assert kept == 1 + sum(b"Patient/p-1" in line and b"Procedure" not in line for line in lines)
    assert len(split.malformed_at) == split.malformed == sum(line in MALFORMED for line in lines)


def test_what_has_no_patient_is_counted_by_type_and_broken_lines_are_named(tmp_path: Path) -> None:
    stray = {"resourceType": "Observation", "id": "o", "subject": {"reference": "Patient/elsewhere"}}
    files = files_of([*resources(3), stray]) | {"broken.ndjson": b'\n{"resourceType":"Pat\nplain words\n'}
    answer = CliRunner().invoke(
        app, ["--json", "data", "split", str(folder_of(files, tmp_path / "in")), "--out", str(tmp_path / "out")]
    )
    data = json.loads(answer.stdout)["data"]
    assert data["stray"] == {"Observation": 1}
    assert data["unread"] == {"Procedure": 3}
    assert data["malformed_at"] == ["broken.ndjson:2", "broken.ndjson:3"]
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert described["arguments"]["stray"] == {"Observation": 1}
    assert "vht-hospital-1|" in described["arguments"]["rule"]


def test_the_hospital_says_nothing_about_the_test_set() -> None:
    patients = [f"patient-{number}" for number in range(8000)]
    for hospital in range(1, 5):
        own = [patient for patient in patients if hospital_of(patient, 4) == hospital]
        assert abs(len(own) / len(patients) - 0.25) < 0.03
        assert abs(sum(is_test(bucket_of(patient)) for patient in own) / len(own) - 0.33) < 0.05


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_half_an_export_is_refused_and_nothing_is_written(tmp_path: Path, keep: float) -> None:
    whole = gzip.compress(b"\n".join(json.dumps(resource).encode() for resource in resources(2000)))
    cut = folder_of({"Patient.ndjson.gz": whole[: int(len(whole) * keep)]}, tmp_path / "in")
    archive = archive_of(files_of(resources(2000)), tmp_path / "export.tgz")
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * keep)])
    for source in (cut, archive):
        with pytest.raises(InputError) as caught:
            split_export(source, tmp_path / "out", hospitals=2)
        assert caught.value.code == "VHT-INPUT-EXPORT"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "files", [{}, {"notes.txt": b"x"}, {"Observation.ndjson": b'{"resourceType":"Observation"}\n'}]
)
def test_an_export_without_patients_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(InputError) as caught:
        split_export(folder_of(files, tmp_path / "in"), tmp_path / "out", hospitals=2)
    assert caught.value.code == "VHT-INPUT-EXPORT"


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    files = {f"../../{name}": content for name, content in files_of(resources(8)).items()}
    path = archive_of(files, tmp_path / "export.tgz")
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("Condition2.ndjson")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    split_export(path, tmp_path / "deep" / "er" / "out", hospitals=1)
    assert {item.name for item in tmp_path.iterdir()} == {"export.tgz", "deep"}
    assert {name.split("/")[0] for name in written(tmp_path / "deep" / "er" / "out")} == {"hospital-1"}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_files_are_those_that_intake_reads_and_the_rest_is_named(tmp_path: Path, packed: bool) -> None:
    patients = b"".join(json.dumps(one).encode() + b"\n" for one in resources(6) if one["resourceType"] == "Patient")
    others = {kind: files_of(resources(6))[f"{kind}.ndjson"] for kind in ("Observation", "Condition")}
    files = {
        "1.Patient.ndjson.gz": gzip.compress(b"\xef\xbb\xbf" + patients),
        "Observation.JSONL": others["Observation"],
        "Condition.ndjson.zst": pa.compress(others["Condition"], codec="zstd", asbytes=True),
        "._1.Patient.ndjson.gz": b"\x00\x05\x16\x07",
        ".DS_Store": b"x",
        "notes.txt": b"x",
    }
    if packed:
        files["__MACOSX/._1.Patient.ndjson.gz"] = b"\x00\x05\x16\x07"
    source = archive_of(files, tmp_path / "in.tgz") if packed else folder_of(files, tmp_path / "in")
    split = split_export(source, tmp_path / "out", hospitals=1)
    assert (split.lines, split.malformed, split.hospitals[0].patients) == (6 + 12 + 6, 0, 6)
    assert split.hospitals[0].resources == {"Patient": 6, "Observation": 12, "Condition": 6}
    unread = {".DS_Store", "._1.Patient.ndjson.gz", "notes.txt"} | set(list(files)[6:])
    assert set(split.ignored) == unread
    assert len(split.ignored) == len(unread)


def test_a_line_longer_than_any_resource_is_counted_and_the_next_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LINE_LIMIT", 100)
    content = b'{"resourceType":"Patient","id":"a"}\n' + b"x" * 1000 + b'\n{"resourceType":"Patient","id":"b"}\n'
    split = split_export(folder_of({"all.ndjson": content}, tmp_path / "in"), tmp_path / "out", hospitals=1)
    assert (split.hospitals[0].patients, split.malformed_at, split.lines) == (2, ["all.ndjson:2"], 3)


def test_a_folder_of_someone_else_is_left_alone_and_an_older_split_is_replaced(tmp_path: Path) -> None:
    foreign = folder_of({"thesis.txt": b"years of work"}, tmp_path / "theirs")
    source = folder_of(files_of(resources(20)), tmp_path / "in")
    with pytest.raises(InputError):
        split_export(source, foreign, hospitals=2)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    split_export(source, tmp_path / "out", hospitals=4)
    split_export(source, tmp_path / "out", hospitals=2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dataset.json", "hospital-1", "hospital-2"]


def test_an_export_is_never_overwritten_by_its_own_parts(tmp_path: Path) -> None:
    split_export(folder_of(files_of(resources(20)), tmp_path / "in"), tmp_path / "out", hospitals=2)
    before = written(tmp_path / "out")
    for inside in (tmp_path / "out", tmp_path / "out" / "hospital-1"):
        with pytest.raises(InputError) as caught:
            split_export(inside, tmp_path / "out", hospitals=3)
        assert caught.value.code == "VHT-INPUT-SAMPLES"
    assert written(tmp_path / "out") == before


def test_a_real_export_is_split_without_losing_a_line(tmp_path: Path) -> None:
    if not GSD.exists():
        assert os.environ.get("CI") != "true", "the sample export is missing beside the checkout"
        pytest.skip("the sample export (../shared/data) is not beside this checkout")
    split = split_export(GSD, tmp_path / "out", hospitals=4)
    assert split.lines == 130_726
    assert split.unread == {"Procedure": 14_081}
    assert (split.stray, split.malformed) == ({}, 0)
    totals = {kind: sum(h.resources[kind] for h in split.hospitals) for kind in split.hospitals[0].resources}
    assert totals == {
        "Patient": 615, "Observation": 88_674, "Condition": 4_546, "MedicationRequest": 4_712, "Encounter": 18_098,
    }  # fmt: skip
    assert all(100 < hospital.patients < 200 for hospital in split.hospitals)
