"""Commands as they stand in the documentation: in ``sh`` blocks, where they are whole, and in running text."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from typer.main import get_command

from kit.places import ROOT
from vht_federate.cli import app

__all__ = ["PAGES", "ROOT", "Mention", "blocks", "check_names", "check_whole", "mentions"]

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
GLOBAL = {"--json", "--help", "--version"}


@dataclass(frozen=True)
class Mention:
    """One ``vht …`` line. ``whole``: from an ``sh`` block, to be run as it stands."""

    page: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def blocks(page: Path, language: str = "sh") -> list[str]:
    """Fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def mentions(page: Path) -> Iterator[Mention]:
    name = page.relative_to(ROOT).as_posix()
    for block in blocks(page):
        for words in _commands(block):
            yield Mention(name, words, whole=True)
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for text in re.findall(r"`(vht [^`]+)`", prose):
        yield Mention(name, tuple(shlex.split(text.replace("\n", " "))), whole=False)


def _commands(script: str) -> Iterator[tuple[str, ...]]:
    """The ``vht`` commands of a shell script; variables and inner commands become ``1``."""
    script = re.sub(
        r"<<(\w+)$.*?^\1$", lambda m: " ".join(re.findall(r"\$\([^()]*\)", m[0])), script, flags=re.S | re.M
    )
    script = script.replace("\\\n", " ")
    inner = re.findall(r"\$\(((?:[^()']|'[^']*')*)\)", script)
    script = re.sub(r"\$\((?:[^()']|'[^']*')*\)", "1", script)
    for text in [*script.splitlines(), *inner]:
        for part in re.split(r"\|\|?|&&|;|(?<![>\d])&(?!\d)", re.sub(r"(?:\s#|^#).*", "", text)):
            words = shlex.split(re.sub(r"\d?>&?\s*\S+", " ", re.sub(r"\$\{?\w+\}?", "1", part)))
            if "vht" in words[:3]:
                yield tuple(words[words.index("vht") :])


def _find(words: tuple[str, ...]) -> tuple[click.Command, list[str]]:
    """The command that ``words`` name, and what follows. Raises click.UsageError."""
    command: click.Command = get_command(app)
    rest = [word for word in words[1:] if word != "--json"]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        subcommand = command.get_command(click.Context(command), rest[0])
        if subcommand is None:
            raise click.UsageError(f"there is no command {rest[0]}")
        command, rest = subcommand, rest[1:]
    return command, rest


def check_names(words: tuple[str, ...]) -> None:
    """Do command and options exist? Raises click.UsageError."""
    command, rest = _find(words)
    known = GLOBAL | {spelled for param in command.params for spelled in (*param.opts, *param.secondary_opts)}
    for word in rest:
        if word.startswith("--") and word.split("=")[0] not in known:
            raise click.UsageError(f"{command.name} has no option {word}")


def check_whole(words: tuple[str, ...]) -> None:
    """Would the command line be understood? Nothing runs; files need not exist. Raises click.UsageError."""
    command, rest = _find(words)
    if isinstance(command, click.Group):
        return check_names(words)
    for param in command.params:
        if isinstance(param.type, click.Path):
            param.type.exists = False
    if "--help" not in rest:
        command.make_context(str(command.name), rest)
    return None
