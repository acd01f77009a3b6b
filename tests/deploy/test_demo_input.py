"""A demo looks at what it was given, and at who else runs there, before it removes what an earlier one left."""

import json
import os
from contextvars import copy_context
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from vht_federate.cli import app


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """What an earlier demo left behind."""
    folder = tmp_path / "out"
    (folder / "run" / "bundle").mkdir(parents=True)
    (folder / "run" / "bundle" / "manifest.json").write_text("{}")
    (folder / "data" / "hospital-1").mkdir(parents=True)
    (folder / "data" / "hospital-1" / "Patient.ndjson").write_text('{"resourceType": "Patient", "id": "a"}\n')
    (folder / "summary.json").write_text("{}")
    (folder / ".vht-demo").write_text("")
    return folder


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def refused(*arguments: str) -> Any:
    answer = copy_context().run(CliRunner().invoke, app, ["--json", "demo", *arguments])
    assert answer.exit_code != 0
    return json.loads(answer.stdout.splitlines()[-1])["error"]["code"]


@pytest.mark.parametrize("option", ["--uci", "--fhir"])
def test_data_that_are_not_there_are_refused_with_everything_left_as_it_was(out: Path, option: str) -> None:
    before = files(out)
    code = {"--uci": "VHT-INPUT-UCI", "--fhir": "VHT-INPUT-EXPORT"}[option]
    assert refused(option, str(out.parent / "typo"), "--out", str(out)) == code
    assert files(out) == before


def test_an_export_that_is_damaged_is_refused_with_everything_left_as_it_was(out: Path) -> None:
    export = out.parent / "export"
    export.mkdir()
    (export / "Patient.ndjson").write_text('{"resourceType": "Patient", "id": "a"}\n')
    (export / "Observation.ndjson.gz").write_text("not gzip")
    before = files(out)
    assert refused("--fhir", str(export), "--out", str(out)) == "VHT-INPUT-EXPORT"
    assert files(out) == before


@pytest.mark.parametrize("inside", ["data/hospital-1", "data", "."])
@pytest.mark.parametrize("option", ["--uci", "--fhir"])
def test_data_in_the_folder_that_is_written_are_never_removed_with_it(out: Path, option: str, inside: str) -> None:
    before = files(out)
    assert refused(option, str(out / inside), "--out", str(out)) == "VHT-INPUT-DEMO"
    assert files(out) == before


def test_a_link_into_the_folder_that_is_written_does_not_hide_that_the_data_lie_there(out: Path) -> None:
    link = out.parent / "elsewhere"
    link.symlink_to(out / "data" / "hospital-1")
    before = files(out)
    assert refused("--fhir", str(link), "--out", str(out)) == "VHT-INPUT-DEMO"
    assert files(out) == before


def test_a_second_demo_in_the_same_folder_is_refused_and_takes_nothing_from_the_first(out: Path) -> None:
    (out / "demo.pid").write_text(f"{os.getpid()} {psutil.Process().create_time()}\n")
    before = files(out)
    assert refused("--out", str(out)) == "VHT-UNAVAILABLE-RUNNING"
    assert files(out) == before


def test_a_folder_of_somebody_elses_is_refused_and_left_as_it_was(out: Path) -> None:
    (out / ".vht-demo").unlink()
    before = files(out)
    assert refused("--out", str(out)) == "VHT-INPUT-OUT"
    assert files(out) == before
