"""The map is true: every file it names is there, and every package has its line."""

import re

from kit.places import ROOT

MAP = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = ("vht_federate", "connector")


def test_every_file_and_folder_that_the_map_names_exists() -> None:
    named = set(
        re.findall(r"`((?:vht_federate|connector|strategies|synth|deploy|tests|benchmarks|docs|scripts)/[\w./]*)`", MAP)
    )
    assert len(named) > 60
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_package_has_its_line() -> None:
    packages = {f"{room}/{folder.parent.name}/" for room in ROOMS for folder in (ROOT / room).glob("*/__init__.py")}
    packages |= {f"{folder.parent.name}/" for folder in ROOT.glob("*/__init__.py")}
    assert [package for package in sorted(packages) if f"| `{package}`" not in MAP] == []


def test_the_walks_enter_each_file_once_or_return_to_it_once() -> None:
    for walk in MAP.split("\n### ")[1:]:
        walk, *_ = walk.split("\n## ")
        stops = re.findall(r"`([\w/]+\.py)`", walk)
        assert {path: stops.count(path) for path in stops if stops.count(path) > 2} == {}
