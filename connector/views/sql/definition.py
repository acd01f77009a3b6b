"""A ViewDefinition as frozen values, checked for shape before any path is read.

SQL on FHIR v2, ViewDefinition: the elements that decide rows are modelled, the metadata of a canonical resource is
accepted and ignored, anything else is refused, so that a misspelt member never changes a result in silence.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from connector.fhir.r4.elements import is_resource
from connector.views.sql.datetime_text import is_stamp
from connector.views.sql.view_errors import Place, view_error

__all__ = ["MAX_BYTES", "Column", "Constant", "Iteration", "Select", "View", "Where", "read_view"]

MAX_BYTES = 256 * 1024
MAX_NESTING = 24
MAX_SELECTS = 256
MAX_COLUMNS = 1024
MAX_CONSTANTS = 1024

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}")
_COMMON = {"id", "extension", "modifierExtension"}
_METADATA = _COMMON | {
    "resourceType", "meta", "implicitRules", "language", "text", "contained", "url", "identifier", "version",
    "versionAlgorithmString", "versionAlgorithmCoding", "name", "title", "status", "experimental", "date",
    "publisher", "contact", "description", "useContext", "jurisdiction", "purpose", "copyright", "copyrightLabel",
    "profile", "fhirVersion",
}  # fmt: skip
_ITERATIONS = ("forEach", "forEachOrNull", "repeat")
_TYPE_PREFIX = re.compile(r"^(http://hl7\.org/fhir/StructureDefinition/|http://hl7\.org/fhirpath/System\.|FHIR\.)")
_SYSTEM_TYPES = {"String": "string", "Boolean": "boolean", "Integer": "integer", "Decimal": "decimal",
                 "Date": "date", "DateTime": "dateTime", "Time": "time"}  # fmt: skip
_CONSTANT_TYPES = (
    "base64Binary", "boolean", "canonical", "code", "date", "dateTime", "decimal", "id", "instant", "integer",
    "integer64", "oid", "string", "positiveInt", "time", "unsignedInt", "uri", "url", "uuid",
)  # fmt: skip


@dataclass(frozen=True)
class Constant:
    """``text`` is the value as FHIRPath would write it, without quotes."""

    name: str
    type: str
    text: str


@dataclass(frozen=True)
class Column:
    name: str
    path: str
    type: str | None
    collection: bool
    place: Place


@dataclass(frozen=True)
class Iteration:
    """``kind`` is forEach, forEachOrNull or repeat; only repeat has more than one path."""

    kind: str
    paths: tuple[str, ...]
    place: Place


@dataclass(frozen=True)
class Select:
    iteration: Iteration | None
    columns: tuple[Column, ...]
    selects: "tuple[Select, ...]"
    union: "tuple[Select, ...]"
    place: Place


@dataclass(frozen=True)
class Where:
    path: str
    place: Place


@dataclass(frozen=True)
class View:
    resource: str
    constants: tuple[Constant, ...]
    where: tuple[Where, ...]
    selects: tuple[Select, ...]


def read_view(view: Mapping[str, Any]) -> View:
    """Raises: ViewError VHT-VIEW-SHAPE, -NAME, -CONSTANT, -RESOURCE or -LIMIT, with the place in the view."""
    top = Place()
    try:
        size = len(orjson.dumps(view))
    except (TypeError, ValueError, RecursionError) as error:
        raise view_error("SHAPE", top, "not JSON, or nested too deep") from error
    if size > MAX_BYTES:
        raise view_error("LIMIT", top, f"a view has at most {MAX_BYTES} bytes")
    body = _object(view, top, _METADATA | {"resource", "constant", "where", "select"})
    if body.get("resourceType", "ViewDefinition") != "ViewDefinition":
        raise view_error("SHAPE", top, "resourceType is not ViewDefinition")
    resource = body.get("resource")
    if not isinstance(resource, str) or not is_resource(resource):
        raise view_error("RESOURCE", top.member("resource"), "names no FHIR R4 resource type")
    reader = _Reader()
    selects = tuple(reader.select(entry, place, 0) for entry, place in _list(body, "select", top))
    if not selects or not reader.columns:
        raise view_error("SHAPE", top.member("select"), "a view selects at least one column")
    where = tuple(
        Where(_path(_object(entry, place, _COMMON | {"path", "description"}), "path", place), place.member("path"))
        for entry, place in _list(body, "where", top)
    )
    return View(resource, _constants(body, top), where, selects)


def _object(value: Any, place: Place, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise view_error("SHAPE", place, "expected an object")
    for name in value:
        if name not in known and str(name).removeprefix("_") not in known:
            raise view_error("SHAPE", place, f"unknown member '{str(name)[:40]}'")
    return value


def _list(body: Mapping[str, Any], name: str, place: Place) -> list[tuple[Any, Place]]:
    value = body.get(name, [])
    if not isinstance(value, list):
        raise view_error("SHAPE", place.member(name), "expected a list")
    return [(item, place.member(name).item(index)) for index, item in enumerate(value)]


def _path(body: Mapping[str, Any], name: str, place: Place) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value.strip():
        raise view_error("SHAPE", place.member(name), "expected a FHIRPath expression")
    return value


def _name(value: Any, place: Place) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise view_error("NAME", place.member("name"), "a name is a letter, then letters, digits and _; at most 128")
    return value


def _constants(body: Mapping[str, Any], top: Place) -> tuple[Constant, ...]:
    constants: dict[str, Constant] = {}
    for value, place in _list(body, "constant", top):
        keys = {f"value{kind[0].upper()}{kind[1:]}": kind for kind in _CONSTANT_TYPES}
        entry = _object(value, place, _COMMON | {"name"} | set(keys))
        name = _name(entry.get("name"), place)
        given = [key for key in entry if key in keys]
        if len(given) != 1 or name in constants or name == "rowIndex":
            raise view_error("CONSTANT", place, "a constant has one value[x] and a name of its own")
        constants[name] = Constant(name, keys[given[0]], _constant_text(entry[given[0]], keys[given[0]], place))
    if len(constants) > MAX_CONSTANTS:
        raise view_error("LIMIT", top.member("constant"), f"a view has at most {MAX_CONSTANTS} constants")
    return tuple(constants.values())


def _constant_text(value: Any, kind: str, place: Place) -> str:
    if kind == "boolean" and isinstance(value, bool):
        return "true" if value else "false"
    if kind in {"integer", "positiveInt", "unsignedInt"} and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if kind == "integer64" and re.fullmatch(r"-?\d{1,19}", str(value)):
        return str(value)
    if kind == "decimal" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return repr(value)
    textual = kind not in {"boolean", "integer", "positiveInt", "unsignedInt", "integer64", "decimal"}
    stamped = kind in {"date", "dateTime", "instant", "time"}
    if textual and isinstance(value, str) and "\x00" not in value and (not stamped or is_stamp(value, kind)):
        return value
    raise view_error("CONSTANT", place, f"the value is not a FHIR {kind}")


class _Reader:
    """Reads selects, counting as it goes."""

    def __init__(self) -> None:
        self.columns = 0
        self.selects = 0

    def select(self, value: Any, place: Place, depth: int) -> Select:
        self.selects += 1
        if depth > MAX_NESTING or self.selects > MAX_SELECTS:
            raise view_error("LIMIT", place, f"at most {MAX_SELECTS} selects, nested at most {MAX_NESTING} deep")
        body = _object(value, place, _COMMON | {"column", "select", "unionAll", *_ITERATIONS})
        return Select(
            iteration=self._iteration(body, place),
            columns=tuple(self._column(entry, where) for entry, where in _list(body, "column", place)),
            selects=tuple(self.select(entry, where, depth + 1) for entry, where in _list(body, "select", place)),
            union=tuple(self.select(entry, where, depth + 1) for entry, where in _list(body, "unionAll", place)),
            place=place,
        )

    @staticmethod
    def _iteration(body: Mapping[str, Any], place: Place) -> Iteration | None:
        given = [name for name in _ITERATIONS if name in body]
        if not given:
            return None
        if len(given) > 1:
            raise view_error("SHAPE", place, f"{' and '.join(given)} exclude each other")
        name = given[0]
        if name != "repeat":
            return Iteration(name, (_path(body, name, place),), place.member(name))
        paths = _list(body, name, place)
        if not paths or not all(isinstance(path, str) and path.strip() for path, _ in paths):
            raise view_error("SHAPE", place.member(name), "expected a list of FHIRPath expressions")
        return Iteration(name, tuple(path for path, _ in paths), place.member(name))

    def _column(self, value: Any, place: Place) -> Column:
        self.columns += 1
        if self.columns > MAX_COLUMNS:
            raise view_error("LIMIT", place, f"a view has at most {MAX_COLUMNS} columns")
        body = _object(value, place, _COMMON | {"path", "name", "description", "collection", "type", "tag"})
        collection = body.get("collection", False)
        declared = body.get("type")
        if not isinstance(collection, bool):
            raise view_error("SHAPE", place.member("collection"), "expected true or false")
        if declared is not None and not isinstance(declared, str):
            raise view_error("SHAPE", place.member("type"), "expected the name of a type")
        if declared is not None:
            bare = _TYPE_PREFIX.sub("", declared)
            declared = _SYSTEM_TYPES.get(bare, bare)
        name = _name(body.get("name"), place)
        return Column(name, _path(body, "path", place), declared, collection, place)
