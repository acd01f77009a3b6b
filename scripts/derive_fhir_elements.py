"""Writes ``connector/fhir/r4/fhir_r4.json``, the element definitions that views and intake are checked against.

Run it as ``python -m scripts.derive_fhir_elements``. The definitions come from the R4B models of ``fhir.resources`` (it
has no R4; for the clinical types the two agree).
The models are needed only here, never to run a view. One entry per type: ``{"": parent, element: notation}`` where
the notation is ``Type``, ``Reference<Patient|Group>`` for the targets of a reference, ``code=male|female`` for a
required binding to a closed set; then ``*`` for a list and ``!`` for what must be present; and for a choice element
``name[x]`` the types it can take, joined by ``|``. A type that an element defines for itself bears FHIR's name, the
element's path (``Observation.component``), not that of the model (``ObservationComponent``).
"""

import importlib
import json
import pkgutil
import typing
from pathlib import Path
from typing import Any

__all__ = ["derive", "main"]

TARGET = Path(__file__).parents[1] / "connector" / "fhir" / "r4" / "fhir_r4.json"
_MARKS = "*!"
_PARENTS = ("Element", "BackboneElement", "Resource", "DomainResource")
_PLAIN = {bool: "boolean", int: "integer", str: "string", bytes: "base64Binary"}
_RENAMED = {"encodedBytes": "base64Binary", "uuidVersion": "uuid"}  # the models' markers for two primitive types

# Required bindings of R4 that the models do not list to their end.
_ENCOUNTER_STATUS = "planned|arrived|triaged|in-progress|onleave|finished|cancelled|entered-in-error|unknown"
_MEALS = ("C", "CM", "CD", "CV")
_TIMES_OF_DAY = "MORN|MORN.early|MORN.late|NOON|AFT|AFT.early|AFT.late|EVE|EVE.early|EVE.late|NIGHT|PHS|HS|WAKE"
_BINDINGS = {
    "Observation.status": "registered|preliminary|final|amended|corrected|cancelled|entered-in-error|unknown",
    "Encounter.status": _ENCOUNTER_STATUS,
    "EncounterStatusHistory.status": _ENCOUNTER_STATUS,
    **{f"{kind}.comparator": "<|<=|>=|>" for kind in ("Quantity", "Age", "Count", "Distance", "Duration")},
    "TimingRepeat.when": "|".join([_TIMES_OF_DAY, *_MEALS, *(f"{side}{meal}" for side in "AP" for meal in _MEALS)]),
}


def _unwrap(annotation: Any) -> tuple[Any, bool]:
    """The type inside ``Optional[...]`` and ``List[...]``, and whether there was a list."""
    many = False
    while True:
        arguments = [argument for argument in typing.get_args(annotation) if argument is not type(None)]
        origin = typing.get_origin(annotation)
        if origin is list:
            annotation, many = arguments[0], True
        elif arguments and origin is not typing.Annotated:
            annotation = arguments[0]
        else:
            return annotation, many


def _marked(marker: Any) -> str:
    name = type(marker).__name__
    name = name[0].lower() + name[1:]
    return _RENAMED.get(name, name)


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Annotated:
        return _marked(annotation.__metadata__[0])
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    return str(annotation).removeprefix("abc.").split(".")[-1].strip("'>").removesuffix("Type")


def _values(type_name: str, json_name: str, listed: list[str]) -> str:
    """The closed set that an element is bound to; nothing where the models list examples only."""
    bound = _BINDINGS.get(f"{type_name}.{json_name}")
    if bound is not None:
        return f"={bound}"
    return f"={'|'.join(listed)}" if listed and not {"+", "etc."} & set(listed) else ""


def _elements(type_name: str, model: Any) -> dict[str, str]:
    elements: dict[str, str] = {}
    choices: dict[str, list[str]] = {}
    required: set[str] = set()
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra or {}
        if not extra.get("element_property") and name not in {"id", "extension", "url"}:
            continue
        annotation, many = _unwrap(field.annotation)
        kind = _marked(field.metadata[0]) if field.metadata and annotation in _PLAIN else _type_name(annotation)
        json_name = field.alias or name
        if choice := extra.get("one_of_many"):
            choices.setdefault(f"{choice}[x]", []).append(kind)
            if extra.get("one_of_many_required"):
                required.add(f"{choice}[x]")
            continue
        targets = [target for target in extra.get("enum_reference_types", ()) if target != "Resource"]
        values = _values(type_name, json_name, extra.get("enum_values", []))
        narrowed = f"<{'|'.join(targets)}>" if targets and kind == "Reference" else values
        needed = field.is_required() or extra.get("element_required", False)
        elements[json_name] = kind + narrowed + "*" * many + "!" * needed
    return elements | {name: "|".join(types) + "!" * (name in required) for name, types in choices.items()}


def derive() -> dict[str, dict[str, str]]:
    """All types by name, each without what it inherits from its parent."""
    models = importlib.import_module("fhir.resources.R4B")
    types: dict[str, dict[str, str]] = {}
    parents: dict[str, str] = {}
    for module_info in pkgutil.iter_modules(models.__path__):
        module = importlib.import_module(f"fhir.resources.R4B.{module_info.name}")
        for name, model in vars(module).items():
            if getattr(model, "__module__", "") == module.__name__ and hasattr(model, "get_resource_type"):
                types[name] = _elements(name, model)
                line = [base.__name__ for base in model.__mro__[1:] if base.__name__ in _PARENTS]
                parents[name] = line[0] if line else ""
    derived = {}
    for name in sorted(types):
        inherited: dict[str, str] = {}
        above = parents[name]
        while above:
            inherited |= types[above]
            above = parents[above]
        own = {key: value for key, value in types[name].items() if inherited.get(key) != value}
        derived[name] = {"": parents[name]} | dict(sorted(own.items()))
    return _named_by_path(derived)


def _named_by_path(types: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The same with FHIR's names for types that an element defines; an element that only uses one keeps referring."""
    defining = {
        f"{owner}{name[:1].upper()}{name[1:]}": (owner, name) for owner, body in types.items() for name in body if name
    }

    def path(model: str) -> str:
        if model not in types or model not in defining:
            return model
        owner, name = defining[model]
        return f"{path(owner)}.{name}" if types[owner][name].rstrip(_MARKS) == model else model

    def renamed(notation: str) -> str:
        model = notation.rstrip(_MARKS)
        return path(model) + notation[len(model) :]

    return {
        path(model): {name: notation if name == "" else renamed(notation) for name, notation in body.items()}
        for model, body in types.items()
    }


def main() -> None:
    lines = (f'"{name}":{json.dumps(body, separators=(",", ":"))}' for name, body in derive().items())
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
