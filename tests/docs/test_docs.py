"""The documentation is true: links, generated pages, commands, codes, fields; and it speaks of the product alone."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from kit.documented_commands import PAGES, ROOT, Mention, blocks, check_names, check_whole, mentions
from kit.hostile_attacks import ATTACKS
from typer.main import get_command

from docs.build import PAGES as GENERATED
from docs.build import broken_links, stale_pages
from docs.codes import FULL, NOTES, PACKAGES, codes
from vht_federate.cli import app
from vht_federate.domain.plan import StudyPlan, TrainingPlan
from vht_federate.evidence.events import EVENTS
from vht_federate.privacy.statement import privacy_statement

QUICKSTARTS = sorted((ROOT / "docs" / "quickstart").glob("*.md"))
MENTIONS = [mention for page in PAGES for mention in mentions(page)]
# Of whoever wrote these pages, and of the machine they were written on.
FOREIGN = re.compile(
    r"/work/|/root/|/home/|\bagents?\b|\bassistants?\b|\bLLMs?\b|\bcopilot\b|\bsubagent|issue [0-9]|\bTODO\b|\bFIXME\b",
    re.IGNORECASE,
)


def text_of(name: str) -> str:
    return (ROOT / "docs" / "reference" / name).read_text()


def test_every_link_leads_somewhere() -> None:
    assert broken_links() == []


@pytest.fixture(scope="module")
def stale() -> dict[str, str]:
    return stale_pages()


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_says_what_the_code_says(name: str, stale: dict[str, str]) -> None:
    assert name not in stale, f"docs/reference/{name} is out of date: make docs"


def test_commands_are_found_in_every_page_that_teaches_some() -> None:
    taught = {mention.page for mention in MENTIONS}
    assert {f"docs/quickstart/{page.name}" for page in QUICKSTARTS} <= taught
    assert sum(mention.whole for mention in MENTIONS) > 60
    assert ("vht", "permit", "keygen", "study", "--name", "user") in {mention.words for mention in MENTIONS}


@pytest.mark.parametrize("mention", MENTIONS, ids=str)
def test_a_command_in_the_documentation_exists_as_it_is_spelled(mention: Mention) -> None:
    (check_whole if mention.whole else check_names)(mention.words)


@pytest.mark.parametrize(
    "line",
    [
        "vht nod serve STATE",
        "vht node serv STATE",
        "vht node serve STATE --fast",
        "vht node approve STATE",
        "vht pki ca",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    with pytest.raises(click.UsageError):
        check_whole(tuple(line.split()))


def test_every_command_argument_and_option_says_what_it_is() -> None:
    def silent(command: click.Command, name: str) -> list[str]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            inner = [
                (child_name, command.get_command(context, child_name)) for child_name in command.list_commands(context)
            ]
            return [line for child_name, child in inner if child for line in silent(child, f"{name} {child_name}")]
        mute = [f"{name} {parameter.name}" for parameter in command.params if not getattr(parameter, "help", None)]
        return mute + ([] if command.help else [name])

    assert silent(get_command(app), "vht") == []


def test_the_commands_of_the_readme_run() -> None:
    lines = [line.split("#")[0].strip() for block in blocks(ROOT / "README.md") for line in block.splitlines()]
    assert {"make demo", "make test"} <= set(lines)
    for line in filter(None, lines):
        words = shlex.split(line)
        if words[0] == "make":
            words.insert(1, "-n")
        else:
            words[0] = str(Path(sys.executable).parent / words[0])
        completed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert completed.returncode == 0, f"{line}: {completed.stderr}"


def test_every_error_code_in_the_documentation_exists() -> None:
    known = {entry.code for entry in codes()}
    for page in PAGES:
        named = set(FULL.findall(page.read_text()))
        assert named <= known | {code.rsplit("-", 1)[0] for code in known}, page.name


def test_every_error_code_of_the_product_is_found_and_says_something() -> None:
    entries = codes()
    spelled = {
        code
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for code in re.findall(rf'code="({FULL.pattern})"', path.read_text())
    }
    assert spelled <= {entry.code for entry in entries}
    assert [entry.code for entry in entries if not entry.messages] == []
    assert set(NOTES) <= {entry.code for entry in entries}


def test_every_reason_of_the_intake_is_explained() -> None:
    source = "".join(path.read_text() for path in (ROOT / "connector" / "fhir").glob("*.py"))
    reasons = set(re.findall(r'Quarantine\(\s*"([a-z-]+)"', source)) | set(re.findall(r'fault="([a-z-]+)"', source))
    reasons |= set(re.findall(r'(?:return|else) "([a-z]+-[a-z]+)"', source)) | {"empty-file", "conflicting-content"}
    assert len(reasons) > 20
    assert {reason for reason in reasons if f"`{reason}`" not in text_of("fhir.md")} == set()


def test_every_kind_of_log_entry_is_described_once_and_no_other() -> None:
    section = text_of("evidence.md").partition("### Kinds of entries")[2].partition("###")[0]
    described = re.findall(r"^\| `([a-z]+\.[a-z-]+)` \|", section, re.MULTILINE)
    assert sorted(described) == sorted(EVENTS)


def test_every_field_of_the_privacy_statement_is_described() -> None:
    training = TrainingPlan(
        rounds=1, local_steps=1, sampling_rate=0.5, clipping_norm=1, noise_multiplier=1, learning_rate=1
    )
    plan = StudyPlan(delta=1e-5, training=training)
    fields = privacy_statement(plan, {"hospital-1": plan.events()})
    schema = json.loads((ROOT / "vht_federate/packaging/schemas/privacy_statement.schema.json").read_text())
    for name in {*fields, *schema["properties"]}:
        assert f"`{name}`" in text_of("privacy-statement.md"), name


def test_each_reader_has_a_page_that_fits_a_sitting() -> None:
    names = [page.stem for page in QUICKSTARTS]
    assert names == ["auditor", "coordinator", "data-scientist", "node-operator"]
    for page in [*QUICKSTARTS, ROOT / "README.md"]:
        assert len(page.read_text().splitlines()) <= 120, page.name
        assert f"docs/quickstart/{page.name}" in (ROOT / "README.md").read_text() or page.name == "README.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_speaks_of_the_product_alone(page: Path) -> None:
    assert FOREIGN.findall(page.read_text()) == []
    assert "\t" not in page.read_text()


def test_the_security_page_and_the_table_of_attacks_have_the_same_items() -> None:
    rows = re.findall(r"^\| ([A-D]\.\d+) \|(.*)$", (ROOT / "docs/explanation/security.md").read_text(), re.MULTILINE)
    assert [item for item, _ in rows] == list(dict.fromkeys(attack.item for attack in ATTACKS.values()))
    for item, row in rows:
        folder = ROOT
        for name in re.findall(r"`((?:tests/)?[\w/]*test_\w+\.py)`", row):
            folder = (ROOT / name).parent if "/" in name else folder
            assert (folder / Path(name).name).is_file(), (item, name)
