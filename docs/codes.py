"""Every error code with what it says, what to do and where it is raised, read from the source, never run.

A function that makes an error out of its own arguments (``broken(where, what, "SEAL")``) is followed to its callers, so
that their words stand in the table. What only a run can fill in is shown as ``…``.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from vht_federate import errors

__all__ = ["Code", "codes", "codes_page"]

ROOT = Path(__file__).parent.parent
PACKAGES = ("vht_federate", "connector", "strategies", "synth", "deploy")
INTRO = """# Error codes

Each error has a stable code, a message and mostly a hint; `--json` prints all three, and a service answers
`{"error": {code, message, hint}}`. The code decides the exit code of a command. No message repeats a value of a
patient. `…` stands for what the moment fills in.
"""
FULL = re.compile(r"VHT-[A-Z]+(?:-[A-Z]+)*(?![A-Za-z])(?!-[A-Z][a-z])")
DEFAULTS = {name: getattr(errors, name).default_code for name in errors.__all__ if name.endswith("Error")}
GLOBAL = ("broken", "view_error", "refusal")  # raisers that other modules call by these names
MAXIMUM_MESSAGES, MAXIMUM_FILES = 5, 3
# What is passed around as a code alone says nothing by itself.
NOTES = {
    "VHT-COMPONENT-GRADIENTS": "the component's model mixes patients, or keeps what it saw of them",
    "VHT-INPUT-FHIR-LINE": "lines do not fit FHIR R4; the first of them are named",
    "VHT-INPUT-METHOD": "this address does not take this HTTP method",
    "VHT-INPUT-USAGE": "a command is missing or unknown, or an argument or option does not fit it",
    "VHT-INTERRUPTED": "Ctrl-C ended the command",
    "VHT-REFUSED-OPERATOR": "the hospital's operator rejected the visit; the reason is in the visit",
    "VHT-REFUSED-STOPPED": "the hospital's operator stopped the visit; the reason is in the visit",
    "VHT-UNAVAILABLE-BUSY": "this node is still at work on other requests of yours, or of others",
    "VHT-UNAVAILABLE-DEADLINE": "the hospital did not answer a round in time; the run goes on if enough others did",
    "VHT-UNAVAILABLE-FILE": "the disk is full, or a file cannot be read or written",
    "VHT-UNAVAILABLE-IDLE": "nothing happened in the visit for a day, or no operator decided for a month",
    "VHT-UNAVAILABLE-QUESTION": "this node is still at work on other questions of yours, or of others",
    "VHT-UNAVAILABLE-RESTART": "the hospital's node stopped, and its open visits with it; what was spent stays spent",
    "VHT-VERIFY-PERMIT": "permit.jwt was not signed by the trusted issuer, or cannot be read",
    "VHT-VERIFY-STUDY": "study.jws was not signed by a data user of the permit, or asks for more than it allows",
    "VHT-VIEW-DEPTH": "a resource is nested deeper than a repeat may follow",
    "VHT-VIEW-NOT-SINGLE": "a path gave several values where a column takes one",
}


@dataclass(frozen=True)
class _Param:
    """Stands where the value is an argument of the surrounding function."""

    name: str


Part = str | _Param


@dataclass(frozen=True)
class _Emit:
    """One way to raise: parts are texts, or parameters still to be filled in by a caller."""

    code: tuple[Part, ...]
    message: tuple[Part, ...]
    hint: tuple[Part, ...] = ()

    def filled(self, given: dict[str, tuple[Part, ...]]) -> "_Emit":
        def fill(parts: tuple[Part, ...]) -> tuple[Part, ...]:
            return tuple(
                new for part in parts for new in (given.get(part.name, ("…",)) if isinstance(part, _Param) else (part,))
            )

        return _Emit(fill(self.code), fill(self.message), fill(self.hint))

    @property
    def open(self) -> bool:
        return any(isinstance(part, _Param) for part in (*self.code, *self.message))


@dataclass
class Code:
    """One code as the page shows it."""

    code: str
    messages: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    files: set[str] = field(default_factory=set)

    @property
    def kind(self) -> type[errors.VhtError]:
        return type(errors.error_from_envelope({"code": self.code}))


def _parts(node: ast.expr | None, params: set[str]) -> tuple[Part, ...]:
    """``node`` as texts and parameters; what is neither becomes ``…``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return (node.value,)
    if isinstance(node, ast.JoinedStr):
        return tuple(part for value in node.values for part in _parts(value, params))
    if isinstance(node, ast.FormattedValue):
        return _parts(node.value, params)
    if isinstance(node, ast.Name) and node.id in params:
        return (_Param(node.id),)
    if isinstance(node, ast.BoolOp):
        texts = [value for value in node.values if isinstance(value, ast.Constant)]
        return _parts(texts[-1], params) if texts else ("…",)
    return () if node is None else ("…",)


def _called(call: ast.Call) -> str:
    """The name a call goes by; methods of ``self`` and of a visit's ``record`` keep a dot in front."""
    if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
        return f".{call.func.attr}" if call.func.value.id in ("self", "record") else ""
    return call.func.id if isinstance(call.func, ast.Name) else ""


class _Module:
    """The functions of one file, and which of them raise in their callers' words."""

    def __init__(self, path: Path) -> None:
        self.name = path.relative_to(ROOT).as_posix()
        self.tree = ast.parse(path.read_text())
        self.defaults = {**DEFAULTS, **self._own_errors()}

    def _own_errors(self) -> dict[str, str]:
        """Kinds of errors that this file defines, with their default codes."""
        defaults: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef):
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                inherited = [{**DEFAULTS, **defaults}[base] for base in bases if base in DEFAULTS or base in defaults]
                own = re.findall(rf"default_code[^=]*= ['\"]({FULL.pattern})", ast.unparse(node))
                if inherited:
                    defaults[node.name] = (own or inherited)[0]
        return defaults

    def functions(self) -> Iterator[tuple[str, ast.FunctionDef]]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef):
                arguments = [argument.arg for argument in node.args.args]
                yield (f".{node.name}" if arguments[:1] == ["self"] else node.name), node

    def emits(self, node: ast.AST, params: set[str], known: dict[str, "_Raiser"]) -> Iterator[_Emit]:
        for call in ast.walk(node):
            if not isinstance(call, ast.Call):
                continue
            name = _called(call)
            keywords = {word.arg: word.value for word in call.keywords if word.arg}
            if name in self.defaults:
                code = _parts(keywords.get("code"), params) or (self.defaults[name],)
                message = _parts(call.args[0] if call.args else keywords.get("message"), params)
                yield _Emit(code, message, _parts(keywords.get("hint"), params))
            elif name == "_naming" and len(call.args) == 2:  # a context manager that gives every error inside its code
                yield _Emit(("VHT-VERIFY-", *_parts(call.args[1], params)), ("…",))
            elif name in known:
                yield from known[name].fill(call, keywords, params)


@dataclass(frozen=True)
class _Raiser:
    """A function whose errors are spelled by its callers."""

    arguments: tuple[str, ...]
    defaults: dict[str, ast.expr]
    emits: tuple[_Emit, ...]

    def fill(self, call: ast.Call, words: dict[str, ast.expr], params: set[str]) -> Iterator[_Emit]:
        bound = {**self.defaults, **dict(zip(self.arguments, call.args, strict=False)), **words}
        filled = {name: _parts(value, params) for name, value in bound.items()}
        for emit in self.emits:
            yield emit.filled(filled)


def _raiser(node: ast.FunctionDef, emits: Sequence[_Emit]) -> _Raiser:
    arguments = [argument.arg for argument in node.args.args if argument.arg != "self"]
    defaults = dict(zip(reversed(arguments), reversed(node.args.defaults), strict=False))
    defaults |= {
        argument.arg: value
        for argument, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        if value
    }
    return _Raiser(tuple(arguments), defaults, tuple(emits))


def _read(modules: list[_Module]) -> Iterator[tuple[_Module, _Emit]]:
    """Follow raisers to their callers until nothing new is found, then every error without an open part."""
    local: dict[str, dict[str, _Raiser]] = {module.name: {} for module in modules}
    shared: dict[str, _Raiser] = {}
    for _ in range(4):
        for module in modules:
            raisers = {**shared, **_of_records(local, module), **local[module.name]}
            for name, node in module.functions():
                params = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
                open_ = [emit for emit in module.emits(node, params, raisers) if emit.open]
                if open_:
                    local[module.name][name] = _raiser(node, open_)
                    if name in GLOBAL:
                        shared[name] = local[module.name][name]
    for module in modules:
        raisers = {**shared, **_of_records(local, module), **local[module.name]}
        for emit in module.emits(module.tree, set(), raisers):
            yield module, emit


def _of_records(local: dict[str, dict[str, _Raiser]], module: _Module) -> dict[str, _Raiser]:
    """``record.error(…)`` of the other checks of evidence."""
    return local.get("vht_federate/evidence/visit_record.py", {}) if "/evidence/" in module.name else {}


def _said(parts: tuple[Part, ...]) -> str:
    text = re.sub(r"(… ?)+…", "…", "".join(str(part) for part in parts)).strip()
    return text.removeprefix("…: ")


def _strings(tree: ast.Module) -> Iterator[str]:
    """String constants that are not docstrings."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


@cache
def codes() -> list[Code]:
    """All codes of the product, sorted; read once a process."""
    modules = [_Module(path) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    by_code: dict[str, Code] = defaultdict(lambda: Code(""))
    for module, emit in _read(modules):
        code = _said(emit.code)
        if FULL.fullmatch(code):
            entry = by_code[code] = replace(by_code[code], code=code)
            _add(entry.messages, _said(emit.message))
            _add(entry.hints, _said(emit.hint))
            entry.files.add(module.name)
    for module in modules:
        for text in _strings(module.tree):
            if FULL.fullmatch(text) and module.name != "vht_federate/errors.py":
                by_code[text] = replace(by_code[text], code=text)
                by_code[text].files.add(module.name)
    for code, note in NOTES.items():
        if code in by_code and note not in by_code[code].messages:
            by_code[code].messages.insert(0, note)
    return [by_code[code] for code in sorted(by_code) if by_code[code].messages or not _family(code, by_code)]


def _family(code: str, by_code: dict[str, Code]) -> bool:
    """A word that only compares with codes that begin so."""
    return any(other.startswith(f"{code}-") for other in by_code)


def _add(texts: list[str], text: str) -> None:
    if len(re.findall(r"[A-Za-z]{2,}", text)) > 1 and text not in texts:
        texts.append(text)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;").replace("\n", " ")


def _several(texts: list[str]) -> str:
    more = ["…"] if len(texts) > MAXIMUM_MESSAGES else []
    return "<br>".join(_cell(text) for text in [*texts[:MAXIMUM_MESSAGES], *more])


def codes_page(note: str) -> str:
    """The page; ``note`` says who writes it."""
    families: dict[tuple[int, str], list[Code]] = defaultdict(list)
    for code in codes():
        families[code.kind.exit_code, code.kind.default_code].append(code)
    parts = [note + INTRO]
    for (exit_code, family), members in sorted(families.items()):
        rows = [
            f"| `{code.code}` | {_several(code.messages)} | {_several(code.hints)} | "
            f"{'<br>'.join(f'`{file}`' for file in sorted(code.files)[:MAXIMUM_FILES])} |"
            for code in members
        ]
        head = f"## {family}, exit {exit_code}\n\n| code | it says | what to do | raised in |\n|---|---|---|---|"
        parts.append("\n".join([head, *rows]) + "\n")
    return "\n".join(parts)
