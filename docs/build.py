"""``make docs``: write docs/reference from the code, then check every relative link in the documentation.

``python -m docs.build --check`` changes nothing and exits 1 where a page is out of date or a link leads nowhere.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from docs.code_maps import code_maps_page
from docs.codes import codes_page
from docs.fields import permit_page, settings_page, study_page
from docs.ports import ports_page
from vht_federate import errors
from vht_federate.cli import SUMMARIES, app

__all__ = ["PAGES", "broken_links", "stale_pages"]

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
NOTE = "<!-- Written by `make docs` from the code. -->\n\n"
COMMANDS_INTRO = """# Commands and exit codes

`--json` may stand anywhere on a line: one envelope `{schema_version, command, ok, data | error{code, message, hint}}`
on stdout; progress goes to stderr. All codes are in [error codes](error-codes.md).

| exit | what happened | codes begin with |
|---|---|---|
| 0 | all well | |"""


def _errors(kind: type[errors.VhtError]) -> Iterator[type[errors.VhtError]]:
    """The tree of errors.py, whatever else is imported."""
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _errors(child)


def commands_page(note: str) -> str:
    """``note`` says who writes the page."""
    from typer.main import get_command

    root = get_command(app)
    context = click.Context(root, info_name="vht")
    lines = [note + COMMANDS_INTRO]
    for kind in sorted(_errors(errors.VhtError), key=lambda error: error.exit_code):
        doc = (kind.__doc__ or "").split("\n")[0].rstrip(".").split(". ")[0]
        lines.append(f"| {kind.exit_code} | {doc} | `{kind.default_code}` |")
    lines.append("")
    for name in root.list_commands(context):  # type: ignore[attr-defined]
        command = root.get_command(context, name)  # type: ignore[attr-defined]
        lines += [f"## vht {name}", "", SUMMARIES.get(name, ""), ""]
        for line, leaf in _leaves(f"vht {name}", command, whole=False):
            lines += _command(line, leaf)
    return "\n".join(lines).rstrip() + "\n"


def _leaves(line: str, command: click.Command, *, whole: bool = True) -> Iterator[tuple[str, click.Command]]:
    """What can be given at ``line`` and below it; a group by itself where ``whole``."""
    if not isinstance(command, click.Group):
        yield line, command
        return
    if whole:
        yield line, command
    for name, leaf in sorted(command.commands.items()):
        yield from _leaves(f"{line} {name}", leaf)


def _command(line: str, command: click.Command) -> list[str]:
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    options = [param for param in command.params if isinstance(param, click.Option) and not _generic(param)]
    names = [argument.human_readable_name for argument in arguments]
    lines = [f"### {' '.join([line, *names])}", "", (command.help or "").split("\f")[0].strip(), ""]
    if arguments or options:
        lines += ["| | | default |", "|---|---|---|"]
    for name, argument in zip(names, arguments, strict=True):
        help_ = getattr(argument, "help", None) or ""
        lines.append(f"| `{name}` | {_cell(help_)} | {'required' if argument.required else ''} |")
    for option in options:
        spelled = "`, `".join([*option.opts, *option.secondary_opts])
        lines.append(f"| `{spelled}` | {_cell(option.help or '')} | {_default(option)} |")
    return [*lines, ""] if arguments or options else lines


def _generic(option: click.Option) -> bool:
    """Help and shell completion are the same everywhere."""
    return bool({"--help", "--install-completion", "--show-completion"} & set(option.opts))


def _default(option: click.Option) -> str:
    if option.required:
        return "required"
    value = option.default
    if value is None or callable(value) or "UNSET" in str(value) or value is False:
        return ""
    return "yes" if value is True else f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


PAGES: dict[str, Callable[[str], str]] = {
    "study-file.md": study_page,
    "permit.md": permit_page,
    "code-maps.md": code_maps_page,
    "commands.md": commands_page,
    "error-codes.md": codes_page,
    "ports.md": ports_page,
    "settings.md": settings_page,
}


def stale_pages() -> dict[str, str]:
    """Pages that are not what the code says: name -> what it should be."""
    pages = {name: make(NOTE) for name, make in PAGES.items()}
    return {
        name: text
        for name, text in pages.items()
        if not (REFERENCE / name).exists() or (REFERENCE / name).read_text() != text
    }


def broken_links() -> list[str]:
    """Relative links of README and docs that lead nowhere, anchors included."""
    broken = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
            if "://" in target:
                continue
            aim = page.parent / target if target else page
            if not aim.exists() or (anchor and anchor not in _anchors(aim)):
                broken.append(f"{page.relative_to(ROOT)}: {target}{'#' if anchor else ''}{anchor}")
    return broken


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def main() -> None:
    check, stale = "--check" in sys.argv, stale_pages()
    for name, text in ({} if check else stale).items():
        (REFERENCE / name).write_text(text)
    problems = broken_links() + [f"docs/reference/{name} is out of date: make docs" for name in stale if check]
    print("\n".join(problems) or f"{len(PAGES)} reference pages, all links lead somewhere")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
