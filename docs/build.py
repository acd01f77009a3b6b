"""``make docs``: write docs/reference from the code, then check every relative link in the documentation.

``python -m docs.build --check`` changes nothing and exits 1 where a page is out of date or a link leads nowhere.
"""

import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vht_federate import errors
from vht_federate.cli import SUMMARIES, app
from vht_federate.domain import permit, plan, study

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
NOTE = "<!-- Written by `make docs` from the code. -->\n\n"
STUDY_INTRO = """# The study file

`study.toml`, written by a coordinator and read by `vht study plan` and `vht study run`. Paths are relative to the file.
`vht study plan study.toml` shows the noise that follows from it, and every call it allows.
"""
COMMANDS_INTRO = """# Commands and exit codes

`--json` may stand anywhere on a line: one envelope `{schema_version, command, ok, data | error{code, message, hint}}`
on stdout.

| exit | error | codes begin with |
|---|---|---|
| 0 | none | |"""
PERMIT_INTRO = """# The permit

What a health data access body allows, to whom, on what, until when: regulation (EU) 2025/327, Article 68(10), and what
a federated visit needs beyond it. It travels as a JWT (EdDSA, typ `vht-permit+jwt`). `vht permit issue --from FILE`
takes the fields below in TOML, without the ids and times that the issuer sets, with `days` for how long it is good and
with `key` (a public key file) in place of each data user's `kid`.
"""


def _fields(model: type[BaseModel]) -> Iterator[str]:
    yield "| field | type | default |\n|---|---|---|"
    for name, field in model.model_fields.items():
        yield f"| `{name}` | {_type(field)} | {_default(field)} |"


def _type(field: FieldInfo) -> str:
    limits = [str(one) for one in field.metadata if not callable(one) and "Validator" not in str(one)]
    return (_named(field.annotation) + (f" ({', '.join(limits)})" if limits else "")).replace("|", r"\|")


def _named(annotation: Any) -> str:
    """A type as a reader would write it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _named(inner[0])
    if origin is Literal:
        return " or ".join(f'"{one}"' for one in inner)
    if origin in (Union, UnionType):
        return " or ".join("none" if one is type(None) else _named(one) for one in inner)
    if origin in (tuple, list):
        return f"list of {_named(inner[0])}"
    if origin is dict:
        return f"{_named(inner[1])} by {_named(inner[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f'"{one.value}"' for one in annotation)
    return {"str": "text", "AwareDatetime": "time with zone", "Path": "path"}.get(
        annotation.__name__, annotation.__name__
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple):
        return "all" if value and isinstance(value[0], Enum) else f"`{list(value)}`"
    return f"`{value!r}`".replace("|", r"\|")


def _models(intro: str, named: dict[str, type[BaseModel]]) -> str:
    parts = [NOTE + intro]
    for title, model in named.items():
        doc = (model.__doc__ or "").strip()
        parts.append(f"## {title}\n" + (f"{re.sub(r'  +', ' ', doc)}\n\n" if doc else "\n") + "\n".join(_fields(model)))
    return "\n\n".join(parts) + "\n"


def study_page() -> str:
    sections = {
        f"[{name}]": field.annotation
        for name, field in study.StudyFile.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    return _models(STUDY_INTRO, {**sections, "[[nodes]]": study.NodeRef, "What is run: the plan": plan.StudyPlan,
                                 "plan.training": plan.TrainingPlan, "plan.evaluation": plan.EvaluationPlan,
                                 "plan.cohort": plan.CohortPlan})  # fmt: skip


def permit_page() -> str:
    return _models(
        PERMIT_INTRO, {"Permit": permit.Permit, "data_users": permit.DataUser, "Status list": permit.StatusList}
    )


def _errors(kind: type[errors.VhtError]) -> Iterator[type[errors.VhtError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _errors(child)


def commands_page() -> str:
    from typer.main import get_command

    root = get_command(app)
    context = click.Context(root, info_name="vht")
    lines = [NOTE + COMMANDS_INTRO]
    for kind in _errors(errors.VhtError):
        doc = (kind.__doc__ or "").strip().split(".")[0] if kind.__doc__ != kind.__base__.__doc__ else ""
        lines.append(
            f"| {kind.exit_code} | {kind.__name__} {doc and '(' + doc.lower() + ')'} | `{kind.default_code}` |"
        )
    lines += ["| 130 | interrupted by Ctrl-C | |", ""]
    for name in root.list_commands(context):  # type: ignore[attr-defined]
        command = root.get_command(context, name)  # type: ignore[attr-defined]
        lines += [f"## vht {name}", "", SUMMARIES.get(name, ""), ""]
        leaves = command.commands if isinstance(command, click.Group) else {"": command}
        for leaf, made in sorted(leaves.items()):
            lines += _command(f"vht {name} {leaf}".strip(), made)
    return "\n".join(lines).rstrip() + "\n"


def _command(line: str, command: click.Command) -> list[str]:
    arguments = [p.human_readable_name for p in command.params if isinstance(p, click.Argument)]
    made = [f"### {' '.join([line, *arguments])}", "", (command.help or "").split("\f")[0].strip(), ""]
    options = [p for p in command.params if isinstance(p, click.Option) and "--help" not in p.opts]
    if options:
        made += ["| option | | default |", "|---|---|---|"]
        for one in options:
            default = "required" if one.required else one.default if not callable(one.default) else ""
            shown = "" if default is None or "UNSET" in str(default) else str(default)
            made.append(f"| `{', '.join(one.opts)}` | {(one.help or '').replace('|', chr(92) + '|')} | {shown} |")
        made.append("")
    return made


PAGES = {"study-file.md": study_page, "permit.md": permit_page, "commands.md": commands_page}


def broken_links() -> list[str]:
    """Relative links of README and docs that lead nowhere."""
    broken = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    return broken


def main() -> None:
    check, stale = "--check" in sys.argv, []
    for name, make in PAGES.items():
        path, text = REFERENCE / name, make()
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.write_text(text)
    problems = broken_links() + (
        [f"docs/reference/{name} is out of date: make docs" for name in stale] if check else []
    )
    print("\n".join(problems) or f"{len(PAGES)} reference pages, all links lead somewhere")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
