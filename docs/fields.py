"""Tables of the fields of our files, read from their models: type, limits, default, the comment beside the field."""

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from connector.settings import CoordinatorSettings, DatasetSettings, NodeSettings
from strategies.coordinator import CoordinatorConfig
from vht_federate.authority.settings import AuthoritySettings
from vht_federate.central.settings import PlatformSettings
from vht_federate.domain import law, permit, plan, study

__all__ = ["permit_page", "settings_page", "study_page"]

STUDY_INTRO = """# The study file

`study.toml`, written by a coordinator and read by `vht study plan` and `vht study run`. `vht study init FILE` writes a
commented one to start from. Paths are relative to the file. `vht study plan FILE` shows the noise that follows from it,
and every call it allows.
"""
PLAN_INTRO = """## What follows: the plan

`vht study plan` turns the file into this value. It is signed with the request, shown to every operator, logged by every
node, and both the enclave and the ledger read it: what is accounted is what runs.
"""
PERMIT_INTRO = """# The permit

What a health data access body allows, to whom, on what, until when: regulation (EU) 2025/327, Article 68(10), and what
a federated visit needs beyond it. It travels as a JWT (EdDSA, typ `vht-permit+jwt`). `vht permit issue --from FILE`
takes the fields below in TOML, with these differences:

- `days` says how long it is good (from `not_before`, or from now), in place of `issued_at` and `expires_at`;
- `permit_id` is left out: the issuer chooses it; `hdab` may be left out: the issuer's own name counts;
- each of `data_users` has `key`, a public key file relative to FILE, in place of `kid`.

[The guide](../guides/by-hand.md) has a whole one.

A job runs only where `release_types` lists what its outputs become: `component` for training, `metrics` for evaluation
and for feasibility questions, `cohort` for the tables of a synthetic cohort. A study with another job is refused at its
request, at every round and by the auditor, with `VHT-PERMIT-RELEASE`.
"""
SETTINGS_INTRO = """# Settings

Each service has one file in its state directory, written by its `init`. Stop the service, edit, start it again. Every
field is public; secrets are files of their own with mode 0600.
"""
PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,199}$": "letters, digits and . _ : -",
    r"^[a-z0-9][a-z0-9-]{0,63}$": "lower-case letters, digits and -",
    r"^[0-9a-f]{64}$": "sha256, 64 hex digits",
    r"^https://": "an https address",
    r"^https?://": "an http or https address",
    r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$": "HOST:PORT",
    r"^(component|cohort|metrics)$": "`component`, `cohort` or `metrics`",
}
PLAIN = {
    "str": "text",
    "AwareDatetime": "time with zone",
    "Path": "path",
    "bool": "true or false",
    "int": "whole number",
}
PLAIN |= {"float": "number"}
NAMED = {"Purpose": "purpose", "DataCategory": "data category", "ProhibitedUse": "prohibited use"}


def _table(model: type[BaseModel]) -> Iterator[str]:
    comments = _comments(model)
    yield "| field | type | default | |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        comment = comments.get(name, "")
        yield f"| `{name}` | {_type(field)} | {_default(field)} | {comment} |".replace("|  |", "| |")


def _comments(model: type[BaseModel]) -> dict[str, str]:
    """The comment that ends each field's line."""
    matches = re.findall(r"^    (\w+): [^#\n]*?  # ((?!noqa|type:)[^\n]+)$", inspect.getsource(model), re.MULTILINE)
    return {name: text.replace("|", r"\|").replace("None: ", "none: ") for name, text in matches}


def _type(field: FieldInfo) -> str:
    limits = [text for constraint in field.metadata if (text := _limit(constraint))]
    return ", ".join([_named(field.annotation), *limits]).replace("|", r"\|")


def _limit(limit: Any) -> str:
    match limit:
        case annotated_types.Gt(gt=value):
            return f"above {_figure(value)}"
        case annotated_types.Ge(ge=value):
            return f"at least {_figure(value)}"
        case annotated_types.Lt(lt=value):
            return f"below {_figure(value)}"
        case annotated_types.Le(le=value):
            return f"at most {_figure(value)}"
        case annotated_types.MinLen(min_length=value):
            return f"at least {_figure(value)}"
        case _:
            pattern = getattr(limit, "pattern", None)
            return PATTERNS.get(pattern, f"`{pattern}`") if pattern else ""


def _figure(value: Any) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _named(annotation: Any) -> str:
    """A type as a reader would write it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [
            text
            for field in inner[1:]
            for constraint in getattr(field, "metadata", [field])
            if (text := _limit(constraint))
        ]
        return ", ".join([_named(inner[0]), *limits])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join("none" if member is type(None) else _named(member) for member in inner)
    if origin in (tuple, list):
        return f"list of {_named(inner[0])}".replace(" of see below", ", see below")
    if origin is dict:
        return f"{_named(inner[1])} by {_named(inner[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return NAMED.get(annotation.__name__) or " or ".join(f"`{member.value}`" for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "see below"
    name = str(annotation.__name__)
    return PLAIN.get(name, name)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its own defaults"
    if isinstance(value, tuple):
        return "all" if value and isinstance(value[0], Enum) else ", ".join(f"`{item}`" for item in value)
    if value is None or value in ("", {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`".replace("|", r"\|")


def _section(title: str, model: type[BaseModel]) -> str:
    doc = inspect.cleandoc(model.__doc__ or "").replace("``", "`")
    return f"## {title}\n\n" + (f"{doc}\n\n" if doc else "") + "\n".join(_table(model)) + "\n"


def _words(title: str, words: type[Enum]) -> str:
    rows = [f"| `{word.value}` | {_spoken(word.name)} |" for word in words]
    return "\n".join([f"## {title}\n\n| | |\n|---|---|", *rows]) + "\n"


def _spoken(name: str) -> str:
    return "electronic health records" if name == "EHR" else name.lower().replace("_", " ")


def study_page(note: str) -> str:
    """``note`` says who writes the page."""
    sections = [
        _section(f"[{name}]", field.annotation)
        for name, field in study.StudyFile.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    ]
    parts = [
        note + STUDY_INTRO,
        *sections,
        _section("[[nodes]]", study.NodeRef),
        PLAN_INTRO + "\n" + _section("plan", plan.StudyPlan).split("\n", 2)[2],
        _section("plan.training", plan.TrainingPlan),
        _section("plan.evaluation", plan.EvaluationPlan),
        _section("plan.cohort", plan.CohortPlan),
        "Purposes and data categories are listed with [the permit](permit.md).\n",
    ]
    return "\n".join(parts)


def permit_page(note: str) -> str:
    """``note`` says who writes the page."""
    parts = [
        note + PERMIT_INTRO,
        _section("Fields", permit.Permit),
        _section("data_users", permit.DataUser),
        _words("Purposes, Article 53(1)", law.Purpose),
        "The first three are open to `public-body` and `union-body` only (Article 53(2)).\n",
        _words("Data categories, Article 51(1)", law.DataCategory),
        _words("Prohibited uses, Article 54", law.ProhibitedUse),
        _section("The status list", permit.StatusList),
    ]
    return "\n".join(parts)


def settings_page(note: str) -> str:
    """``note`` says who writes the page."""
    parts = [
        note + SETTINGS_INTRO,
        _section("node.toml", NodeSettings),
        _section("node.toml, [dataset]", DatasetSettings),
        _section("node.toml, [coordinator]", CoordinatorSettings),
        _section("coordinator.toml", CoordinatorConfig),
        _section("authority.toml", AuthoritySettings),
        _section("platform.toml", PlatformSettings),
    ]
    return "\n".join(parts)
