"""Writes ``connector/views/sql/fhir_r4.json``, the element definitions that views are checked against.

Run it as ``python -m scripts.derive_fhir_elements``. The definitions come from the R4B models of ``fhir.resources`` (it
has no R4; for the clinical types the two agree).
The models are needed only here, never to run a view. One entry per type: ``{"": parent, element: notation}`` where
the notation is ``Type``, ``Type*`` for a list, ``Reference<Patient|Group>`` for the targets of a reference, and for a
choice element ``name[x]`` the types it can take, joined by ``|``. A type that an element defines for itself bears
FHIR's name, the element's path (``Observation.component``), not that of the model (``ObservationComponent``).
"""

import importlib
import json
import pkgutil
import typing
from pathlib import Path
from typing import Any

__all__ = ["derive", "main"]

TARGET = Path(__file__).parents[1] / "connector" / "views" / "sql" / "fhir_r4.json"
_PARENTS = ("Element", "BackboneElement", "Resource", "DomainResource")
_PLAIN = {bool: "boolean", int: "integer", str: "string", bytes: "base64Binary"}
_RENAMED = {"encodedBytes": "base64Binary", "uuidVersion": "uuid"}  # the models' markers for two primitive types


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


def _elements(model: Any) -> dict[str, str]:
    elements: dict[str, str] = {}
    choices: dict[str, list[str]] = {}
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra or {}
        if not extra.get("element_property") and name not in {"id", "extension", "url"}:
            continue
        annotation, many = _unwrap(field.annotation)
        kind = _marked(field.metadata[0]) if field.metadata and annotation in _PLAIN else _type_name(annotation)
        json_name = field.alias or name
        if choice := extra.get("one_of_many"):
            choices.setdefault(f"{choice}[x]", []).append(kind)
            continue
        targets = [target for target in extra.get("enum_reference_types", ()) if target != "Resource"]
        elements[json_name] = kind + (f"<{'|'.join(targets)}>" if targets and kind == "Reference" else "") + "*" * many
    return elements | {name: "|".join(types) for name, types in choices.items()}


def derive() -> dict[str, dict[str, str]]:
    """All types by name, each without what it inherits from its parent."""
    models = importlib.import_module("fhir.resources.R4B")
    types: dict[str, dict[str, str]] = {}
    parents: dict[str, str] = {}
    for module_info in pkgutil.iter_modules(models.__path__):
        module = importlib.import_module(f"fhir.resources.R4B.{module_info.name}")
        for name, model in vars(module).items():
            if getattr(model, "__module__", "") == module.__name__ and hasattr(model, "get_resource_type"):
                types[name] = _elements(model)
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
        return f"{path(owner)}.{name}" if types[owner][name].rstrip("*") == model else model

    def renamed(notation: str) -> str:
        many = "*" * notation.count("*")
        return path(notation.rstrip("*")) + many

    return {
        path(model): {name: notation if name == "" else renamed(notation) for name, notation in body.items()}
        for model, body in types.items()
    }


def main() -> None:
    lines = (f'"{name}":{json.dumps(body, separators=(",", ":"))}' for name, body in derive().items())
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
