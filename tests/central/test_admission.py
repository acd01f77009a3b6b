"""What the platform refuses: archives that lead outside, rows in any dress, evidence that does not hold."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from kit.publishable_release import BOOK, ROWS, Platform, Publishable, write_cohort
from safetensors.numpy import save

from vht_federate.central.archive import Limits, unpack
from vht_federate.central.row_detection.cohorts import look_at_cohort
from vht_federate.central.row_detection.files import look_for_rows
from vht_federate.errors import PublicationError

EXPORT = '{"resourceType":"Patient","id":"p%d","name":[{"family":"Muster"}],"birthDate":"1950-03-04"}'


def code_of(action: Callable[[], object]) -> str:
    with pytest.raises(PublicationError) as caught:
        action()
    assert "Muster" not in caught.value.message
    assert "1950" not in caught.value.message
    return caught.value.code


# --- archives -----------------------------------------------------------------------------------------------------


def member(name: str, content: bytes = b"x", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    archive.seek(0)
    return archive


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside")],
        [member("/etc/cron.d/x")],
        [member("a/../../outside")],
        [member("a/./b")],
        [member("a\\..\\b")],
        [member(".hidden")],
        [member("link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        [member("hard", b"", type=tarfile.LNKTYPE, linkname="a")],
        [member("fifo", b"", type=tarfile.FIFOTYPE)],
        [member("twice"), member("twice")],
        [member("a"), member("a/b")],
        [member(f"f{number}") for number in range(6)],
        [member("large", b"x" * 2_000)],
        [],
    ],
)
def test_an_archive_that_leads_outside_or_beyond_limits_is_refused(
    members: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path
) -> None:
    target = tmp_path / "in" / "bundle"
    target.parent.mkdir()
    limits = Limits(files=5, total_bytes=1_000)
    assert code_of(lambda: unpack(tar_of(*members), target, limits)) == "VHT-PUBLICATION-ARCHIVE"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", tar_of(member("a", b"x" * 500)).getvalue()[:-40]],
    ids=["empty", "no archive", "cut off"],
)
def test_what_is_no_whole_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    assert code_of(lambda: unpack(io.BytesIO(content), tmp_path / "b", Limits())) == "VHT-PUBLICATION-ARCHIVE"


def test_a_plain_archive_unpacks_with_its_folders(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("./release")
    folder.type = tarfile.DIRTYPE
    unpack(tar_of((folder, b""), member("./release/a.json", b"{}"), member("b.txt", b"b")), tmp_path / "b", Limits())
    assert (tmp_path / "b/release/a.json").read_bytes() == b"{}"


# --- rows in any dress --------------------------------------------------------------------------------------------


def export_rows(count: int = 40) -> pd.DataFrame:
    return pd.DataFrame({"id": range(count), "age": [40 + row % 30 for row in range(count)], "sbp": 120.5, "out": 0})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("release/cardio-risk/code/notes.md", "\n".join(EXPORT % number for number in range(5))),
        ("release/cardio-risk/provenance.json", json.dumps({"runs": [{"deep": [json.loads(EXPORT % 1)]}]})),
        ("release/cardio-risk/code/table.md", export_rows().to_csv(index=False)),
        ("release/cardio-risk/code/table.py", export_rows().to_csv(index=False, sep=";")),
        ("cohort/data_card.md", export_rows().to_csv(index=False, sep="|")),
        ("cohort/codebook.json", EXPORT % 1),
        ("Patient.ndjson", "\n".join(EXPORT % number for number in range(5))),
        ("run.json", "SQLite format 3\0"),
        ("run.json", b"\x1f\x8b\x08\x00compressed"),
        ("release/cardio-risk/weights.safetensors", save({"w": export_rows(1200).to_numpy(dtype="float32")})),
        ("release/cardio-risk/weights.safetensors", b"not tensors"),
        ("release/cardio-risk/model_card.md", b"\xff\xfe\x00 binary"),
    ],
)
def test_rows_are_recognised_wherever_they_lie(name: str, content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PublicationError) as caught:
        look_for_rows(tmp_path)
    assert caught.value.code == "VHT-PUBLICATION-ROWS"
    assert name in caught.value.message


def test_parquet_under_another_name_and_personal_elements_are_recognised(tmp_path: Path) -> None:
    export_rows().to_parquet(tmp_path / "model_card.md")
    assert code_of(lambda: look_for_rows(tmp_path)) == "VHT-PUBLICATION-ROWS"
    (tmp_path / "model_card.md").write_text(json.dumps({"contacts": [{"family": "Muster"}]}))
    assert code_of(lambda: look_for_rows(tmp_path)) == "VHT-PUBLICATION-PERSONAL"


def test_an_honest_bundle_does_not_look_like_rows(bundle: Path) -> None:
    look_for_rows(bundle)


# --- the cohort's own rows ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "cohort"
    write_cohort(folder, {})
    return folder


def both(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    table = change(pd.read_parquet(folder / "data.parquet"))
    table.to_csv(folder / "data.csv", index=False, lineterminator="\n")
    table.to_parquet(folder / "data.parquet", index=False)


def first_line(folder: Path, kind: str, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    path = folder / "fhir" / f"{kind}.ndjson"
    lines = path.read_text().splitlines()
    resource = json.loads(lines[0])
    change(resource)
    path.write_text("\n".join([json.dumps(resource), *lines[1:]]) + "\n")


SPOILS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a column more": ("COLUMNS", lambda f: both(f, lambda t: t.assign(patient=range(len(t))))),
    "a column renamed": ("COLUMNS", lambda f: both(f, lambda t: t.rename(columns={"age": "birth_year"}))),
    "columns in another order": ("COLUMNS", lambda f: both(f, lambda t: t[list(t.columns[::-1])])),
    "measured values": ("VALUES", lambda f: both(f, lambda t: t.assign(systolic_bp=[118.37] * len(t)))),
    "values beyond the bounds": ("VALUES", lambda f: both(f, lambda t: t.assign(age=[104] * len(t)))),
    "names in a cell": ("VALUES", lambda f: both(f, lambda t: t.assign(smoker=["Muster"] * len(t)))),
    "a missing outcome": ("VALUES", lambda f: both(f, lambda t: t.assign(cvd_10y=pd.NA))),
    "rows more": ("VALUES", lambda f: both(f, lambda t: pd.concat([t, t]))),
    "other rows in parquet": (
        "VALUES",
        lambda f: pd.read_parquet(f / "data.parquet")[::-1].to_parquet(f / "data.parquet", index=False),
    ),
    "no parquet": ("VALUES", lambda f: (f / "data.parquet").write_bytes(b"PAR1 not really PAR1")),
    "an export as FHIR": ("SYNTHETIC", lambda f: (f / "fhir/Patient.ndjson").write_text(EXPORT % 1 + "\n")),
    "a tag missing": ("SYNTHETIC", lambda f: first_line(f, "Observation", lambda r: r["meta"].pop("security"))),
    "a name beside the tags": ("ROWS", lambda f: first_line(f, "Patient", lambda r: r.update(name=[{"text": "M"}]))),
    "an identifier": ("ROWS", lambda f: first_line(f, "Patient", lambda r: r.update(id="0815"))),
    "a birth date": ("ROWS", lambda f: first_line(f, "Patient", lambda r: r.update(birthDate="1950-03-04"))),
    "a note": ("ROWS", lambda f: first_line(f, "Condition", lambda r: r["code"].update(comment="Muster"))),
    "an extension": ("ROWS", lambda f: first_line(f, "Condition", lambda r: r.update(extension=[{"url": "x"}]))),
    "a patient more than rows": ("ROWS", lambda f: first_line(f, "Patient", lambda r: r.update(id="synthetic-61"))),
    "another patient's value": (
        "ROWS",
        lambda f: first_line(f, "Observation", lambda r: r["subject"].update(reference="Patient/p1")),
    ),
    "another type": ("ROWS", lambda f: first_line(f, "Patient", lambda r: r.update(resourceType="Encounter"))),
    "another file": ("ROWS", lambda f: shutil.copy(f / "data.csv", f / "fhir/Encounter.ndjson")),
    "broken JSON": ("ROWS", lambda f: (f / "fhir/Patient.ndjson").write_text("{\n")),
}


def test_an_honest_cohort_passes(honest: Path) -> None:
    look_at_cohort(honest, BOOK, ROWS)


@pytest.mark.parametrize("name", SPOILS)
def test_a_cohort_that_holds_more_than_its_codebook_is_refused(name: str, honest: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(honest, tmp_path / "cohort"))
    code, spoil = SPOILS[name]
    spoil(folder)
    assert code_of(lambda: look_at_cohort(folder, BOOK, ROWS)) == f"VHT-PUBLICATION-{code}"


def test_dates_of_their_own_are_refused(honest: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(honest, tmp_path / "cohort"))
    path = folder / "fhir/Observation.ndjson"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["effectiveDateTime"] = f"2011-0{1 + number % 9}-11"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert code_of(lambda: look_at_cohort(folder, BOOK, ROWS)) == "VHT-PUBLICATION-ROWS"


# --- the whole door -----------------------------------------------------------------------------------------------


def nothing_is_kept(platform: Platform) -> None:
    assert platform.catalogue.publications() == []
    assert list(platform.catalogue.incoming.iterdir()) == []
    assert list((platform.state / "publications").iterdir()) == []


def test_a_hospital_export_without_any_evidence_is_refused_as_rows(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export/Patient.ndjson").write_text("\n".join(EXPORT % number for number in range(9)))
    assert code_of(lambda: platform.send(tmp_path / "export")) == "VHT-PUBLICATION-ROWS"
    nothing_is_kept(platform)


def test_evidence_that_does_not_hold_is_refused_and_names_the_file(platform: Platform, bundle: Path) -> None:
    card = bundle / "release/cardio-risk/model_card.md"
    card.write_text(card.read_text() + "better than it is\n")
    with pytest.raises(PublicationError) as caught:
        platform.send(bundle)
    assert caught.value.code == "VHT-PUBLICATION-EVIDENCE"
    assert "model_card.md" in caught.value.message
    nothing_is_kept(platform)


def test_a_known_manifest_does_not_excuse_changed_files(platform: Platform, bundle: Path) -> None:
    platform.send(bundle)
    (bundle / "run.json").write_text("{}")
    assert code_of(lambda: platform.send(bundle)) == "VHT-PUBLICATION-EVIDENCE"
    assert len(platform.catalogue.publications()) == 1


def test_keys_that_the_platform_does_not_trust_are_refused(platform: Platform, bundle: Path) -> None:
    from vht_federate.signing.keys import SigningKey

    trust = json.loads(platform.trust.read_text())
    platform.trust.write_text(json.dumps({**trust, "coordinator": SigningKey.generate().public.jwk()}))
    assert code_of(lambda: platform.send(bundle)) == "VHT-PUBLICATION-EVIDENCE"
    platform.trust.write_text(json.dumps(trust))  # read again for the next publication
    assert platform.send(bundle)[1]


def test_a_signed_cohort_with_a_column_more_in_its_own_codebook_is_refused(
    platform: Platform, spoiled: Callable[..., Path]
) -> None:
    def add_a_column(folder: Path) -> None:
        both(folder, lambda table: table.assign(postcode=[12345] * len(table))[["postcode", *table.columns]])
        codebook = json.loads((folder / "codebook.json").read_text())
        codebook["order"].insert(0, "postcode")
        codebook["columns"]["postcode"] = {**codebook["columns"]["age"], "edges": [0.0, 50000.0, 99999.0]}
        (folder / "codebook.json").write_text(json.dumps(codebook))

    assert code_of(lambda: platform.send(spoiled(add_a_column))) == "VHT-PUBLICATION-COLUMNS"
    nothing_is_kept(platform)


def test_a_publication_that_crashed_halfway_is_admitted_at_the_next_attempt(platform: Platform, bundle: Path) -> None:
    publication, _ = platform.send(bundle)
    (platform.state / "platform.sqlite").unlink()  # the folder is in place, the entry is not
    again = Platform(platform.state)
    assert again.send(bundle) == (publication, True)


def leave(folder: Path) -> None:
    assert folder.is_dir()


def change_share(folder: Path, **changes: object) -> None:
    path = folder / "privacy_statement.json"
    statement = json.loads(path.read_text())
    path.write_text(json.dumps({**statement, "release": {**statement["release"], **changes}}))


def change_statement(folder: Path, **changes: object) -> None:
    path = folder / "privacy_statement.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "facts", "code"),
    [
        (lambda folder: change_share(folder, epsilon=0.001), {}, "EVIDENCE"),
        (lambda folder: change_share(folder, events=[]), {}, "EVIDENCE"),
        (lambda folder: change_share(folder, kind="component"), {}, "EVIDENCE"),
        (lambda folder: change_statement(folder, unit="patient. This is anonymous data"), {}, "EVIDENCE"),
        (lambda folder: change_statement(folder, trust_model={"name": "secure-aggregation"}), {}, "EVIDENCE"),
        (lambda folder: change_statement(folder, nodes={}), {}, "EVIDENCE"),
        (leave, {"cohort_epsilon": 0.001}, "CLAIMS"),
        (leave, {"cohort_epsilon": 9.0}, "CLAIMS"),
        (leave, {"epsilon": 0.1}, "EVIDENCE"),
        (leave, {"delta": 1e-9}, "EVIDENCE"),
        (leave, {"nodes": 40}, "CLAIMS"),
    ],
)
def test_a_signed_claim_that_the_evidence_does_not_carry_is_refused(
    spoil: Callable[[Path], None],
    facts: dict[str, object],
    code: str,
    platform: Platform,
    spoiled: Callable[..., Path],
) -> None:
    bundle = spoiled(spoil, cohort_facts=facts)
    assert code_of(lambda: platform.send(bundle)) == f"VHT-PUBLICATION-{code}"
    nothing_is_kept(platform)


def test_a_cohort_whose_tables_came_from_a_node_that_was_lost_later_is_admitted(
    platform: Platform, tmp_path: Path
) -> None:
    names = ("hospital-1", "hospital-2", "hospital-3")
    with Publishable(tmp_path / "lost", names) as rehearsal:
        rehearsal.play(lost={"hospital-3": ("marginals", 2)}).bundle(tmp_path / "bundle")
        rehearsal.trust.write(platform.trust)
    publication, new = platform.send(tmp_path / "bundle")
    nodes = {
        kind: platform.catalogue.release(kind, release_id).facts["nodes"]
        for kind, release_id in publication.releases.items()
    }
    assert new
    assert nodes == {"component": 2, "cohort": 3}
