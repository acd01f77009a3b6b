import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.commands import exit_and_envelope

from vht_federate.components.digest import ComponentFiles, component_digest
from vht_federate.components.registry import find_component, find_digest, installed
from vht_federate.errors import ComponentError, InputError

SHIPPED = find_component("cardio-risk").folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__")))


def test_a_copy_has_the_same_digest_wherever_it_lies(copy: Path) -> None:
    assert component_digest(copy) == component_digest(SHIPPED)


def test_one_changed_byte_in_any_file_changes_the_digest(copy: Path) -> None:
    expected = component_digest(copy)
    for file in sorted(copy.rglob("*")):
        raw = file.read_bytes()
        file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        assert component_digest(copy) != expected
        file.write_bytes(raw)
    assert component_digest(copy) == expected


def test_a_file_added_removed_or_renamed_changes_the_digest(copy: Path) -> None:
    expected = component_digest(copy)
    (copy / "extra.txt").write_bytes(b"")
    assert component_digest(copy) != expected
    (copy / "extra.txt").unlink()
    (copy / "card.md").rename(copy / "card2.md")
    assert component_digest(copy) != expected


def test_bytecode_does_not_count(copy: Path) -> None:
    expected = component_digest(copy)
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"x")
    (copy / "model.pyc").write_bytes(b"x")
    assert component_digest(copy) == expected


@given(st.dictionaries(st.sampled_from(["a", "ab", "b/a", "c"]), st.binary(max_size=4), max_size=4), st.data())
def test_two_different_sets_of_files_never_share_a_digest(files: dict[str, bytes], data: st.DataObject) -> None:
    other = data.draw(
        st.dictionaries(st.sampled_from(["a", "ab", "b/a", "c"]), st.binary(max_size=4), max_size=4).filter(
            lambda chosen: chosen != files
        )
    )
    assert ComponentFiles(Path("x"), files).digest != ComponentFiles(Path("x"), other).digest


@pytest.mark.parametrize("target", ["card.md", "/etc/hostname", "missing", "."])
def test_a_symbolic_link_is_refused(copy: Path, target: str) -> None:
    (copy / "link").symlink_to(target)
    with pytest.raises(ComponentError) as caught:
        component_digest(copy)
    assert caught.value.code == "VHT-COMPONENT-FILES"


def test_a_special_file_is_refused(copy: Path) -> None:
    os.mkfifo(copy / "pipe")
    with pytest.raises(ComponentError):
        component_digest(copy)


def test_expect_names_the_folder_and_both_digests(copy: Path) -> None:
    files = ComponentFiles.read(copy)
    files.expect(files.digest)
    with pytest.raises(ComponentError) as caught:
        files.expect("0" * 64)
    assert caught.value.code == "VHT-COMPONENT-DIGEST"
    assert files.digest[:12] in caught.value.message


@pytest.mark.parametrize("broken", ["", "name = 3", "\xff", 'schema_version = "1"'])
def test_a_broken_contract_is_an_input_error(copy: Path, broken: str) -> None:
    (copy / "component.toml").write_text(broken, encoding="latin-1")
    with pytest.raises(InputError):
        ComponentFiles.read(copy).component()


@pytest.mark.parametrize(
    ("was", "is_", "place"),
    [
        ("license = ", "licence = ", "licence"),
        ('direction = "outcome"', 'direction = "outward"', ".direction"),
        ('version = "', 'version = 3 # "', "version"),
    ],
)
def test_what_does_not_fit_the_contract_is_named_by_its_field(copy: Path, was: str, is_: str, place: str) -> None:
    text = (copy / "component.toml").read_text()
    assert was in text
    (copy / "component.toml").write_text(text.replace(was, is_))
    code, envelope = exit_and_envelope("component", "show", copy)
    assert (code, envelope["error"]["code"]) == (2, "VHT-INPUT-COMPONENT")
    assert f"{place}: " in envelope["error"]["message"]


def test_named_paths_go_before_packaged_components(copy: Path) -> None:
    assert installed()["cardio-risk"].folder == SHIPPED
    assert installed([copy])["cardio-risk"].folder == copy
    assert installed([copy.parent])["cardio-risk"].folder == copy
    assert find_digest(component_digest(SHIPPED)).folder == SHIPPED


def test_a_digest_that_nobody_installed_is_refused(copy: Path) -> None:
    (copy / "card.md").write_text("another card")
    with pytest.raises(ComponentError):
        find_digest(component_digest(copy))
    assert find_digest(component_digest(copy), [copy]).folder == copy


def test_unknown_names_empty_paths_and_doubles_are_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for attempt in (
        lambda: find_component("no-such"),
        lambda: installed([tmp_path / "empty"]),
        lambda: installed([copy, copy]),
        lambda: ComponentFiles.read(tmp_path / "empty"),
    ):
        with pytest.raises(InputError):
            attempt()


@pytest.mark.parametrize("arguments", [["list"], ["show", "cardio-risk"], ["digest", "cardio-risk"]])
def test_the_commands_print_one_envelope_and_load_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from vht_federate.cli import main; sys.argv[1:] = sys.argv[1:]\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code, left\n"
        "assert 'torch' not in sys.modules"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code, "component", *arguments, "--json"], capture_output=True, text=True, check=True
    )
    envelope = json.loads(completed.stdout)
    assert envelope["ok"]
    assert component_digest(SHIPPED) in completed.stdout


def test_borrowed_files_are_covered_wherever_they_lie(copy: Path) -> None:
    files = ComponentFiles.read(copy)
    assert "generalised_linear.py" in files.files
    assert not (copy / "generalised_linear.py").exists()
    (copy / "generalised_linear.py").write_bytes(files.files["generalised_linear.py"])
    assert component_digest(copy) == files.digest


def test_one_changed_byte_in_a_borrowed_file_changes_the_digest(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = component_digest(copy)
    shared = copy.parent / "shared"
    shared.mkdir()
    (shared / "generalised_linear.py").write_bytes(ComponentFiles.read(copy).files["generalised_linear.py"] + b"#")
    monkeypatch.setattr("vht_federate.components.digest._SHARED", shared)
    assert component_digest(copy) != expected


@pytest.mark.parametrize("borrows", ['["absent.py"]', '["../digest.py"]', '["/etc/hostname"]', "[7]"])
def test_only_files_that_ship_can_be_borrowed(copy: Path, borrows: str) -> None:
    contract = (copy / "component.toml").read_text().replace('["generalised_linear.py"]', borrows)
    (copy / "component.toml").write_text(contract)
    with pytest.raises(ComponentError) as caught:
        ComponentFiles.read(copy)
    assert caught.value.code == "VHT-COMPONENT-FILES"
