"""The quick way to know that a resource keeps what R4 demands: msgspec reads it into a type made of the definitions.

Each R4 type becomes one ``msgspec.Struct`` that refuses unknown elements, nulls, wrong JSON types, absent required
elements and codes outside a required binding while it decodes; strings of a format are checked once each, and kept.
What is not passed here may still be R4 (an element with an extension in place of its value, a contained resource of
a type that no node reads): ``connector.fhir.r4.conformance`` decides. What is passed here, it passes too.
"""

import keyword
import re
from collections.abc import Callable
from functools import cache, lru_cache
from operator import attrgetter
from typing import Annotated, Any, Literal, Union

import msgspec

from connector.fhir.r4.elements import Choice, Element, elements, is_attribute, is_primitive, is_resource
from connector.fhir.r4.primitives import is_spelled, json_type

__all__ = ["Strict"]

_ESCAPED = re.compile(rb"\\[ubf]")
_CACHED = 131_072  # values of a format whose verdict is kept
LONGEST_CACHED = 256
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
Post = Callable[[Any], None]


class _Spelled(str):
    """A string of a format; each subclass is named after its primitive type."""

    __slots__ = ()
    primitive = ""


_FORMATTED = [
    *("base64Binary", "canonical", "code", "date", "dateTime", "id", "instant"),
    *("oid", "time", "uri", "url", "uuid"),
]
_FORMATS = {
    name: type(name, (_Spelled,), {"__slots__": (), "primitive": name})
    for name in [
        "base64Binary",
        "canonical",
        "code",
        "date",
        "dateTime",
        "id",
        "instant",
        "oid",
        "time",
        "uri",
        "url",
        "uuid",
    ]
}
_INTEGERS = {
    "integer": Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)],
    "positiveInt": Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)],
    "unsignedInt": Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)],
}


def _spelled(kind: type[_Spelled], value: str) -> _Spelled:
    """msgspec's hook. What is raised is not kept, so that long values do not fill the memory."""
    if len(value) > LONGEST_CACHED or not is_spelled(kind.primitive, value):
        raise ValueError(kind.primitive)
    return kind(value)


class Strict:
    """Passes resources of ``types`` as bytes. One instance a process: it is made in tens of milliseconds."""

    def __init__(self, types: tuple[str, ...]) -> None:
        structs = _structs(types)
        union: Any = Union[tuple(structs[name] for name in types)]  # noqa: UP007 - made at run time
        self._decode = msgspec.json.Decoder(union, dec_hook=lru_cache(maxsize=_CACHED)(_spelled)).decode
        self._encode = msgspec.json.Encoder(enc_hook=str).encode

    def passes(self, content: bytes) -> bool:
        """True where ``content`` is one resource of these types and keeps R4; False where another must decide."""
        if b'""' in content or (b"\\" in content and _ESCAPED.search(content)):
            return False
        try:
            resource = self._decode(content)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return False
        if resource.id is msgspec.UNSET or not _ID.fullmatch(resource.id):
            return False
        again = self._encode(resource)
        # A second member of one name was dropped, and its quotes with it.
        return again.count(b'"') == content.count(b'"') and b"{}" not in again


@cache
def _structs(types: tuple[str, ...]) -> dict[str, Any]:
    """The structs of ``types`` and of every type that they reach, by name."""
    reached, waiting = {}, list(types)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            fields, found = _fields(name)
            reached[name] = fields
            waiting += found
    structs = globals()  # forward references of msgspec are looked up in the struct's module
    for name, fields in reached.items():
        structs[_python_name(name)] = msgspec.defstruct(
            _python_name(name),
            fields,
            module=__name__,
            rename={field[0]: _json_name(field[0]) for field in fields},
            namespace=_judged_whole(name),
            forbid_unknown_fields=True,
            gc=False,
            tag_field="resourceType" if is_resource(name) else None,
            tag=name if is_resource(name) else None,
        )
    return {name: structs[_python_name(name)] for name in reached}


def _python_name(type_name: str) -> str:
    return f"R4{type_name.replace('.', '_')}"


_BESIDE = "__beside"


def _json_name(field: str) -> str:
    return f"_{field.removesuffix(_BESIDE)}" if field.endswith(_BESIDE) else field.removesuffix("_")


def _field_name(json_name: str) -> str:
    return f"{json_name}_" if keyword.iskeyword(json_name) else json_name


def _judged_whole(type_name: str) -> dict[str, Any]:
    """``__post_init__`` of a type with a choice, or with invariants; what it raises ends the decoding."""
    tests = [_one_of(item) for item in elements(type_name) if isinstance(item, Choice)]
    if type_name == "Observation":
        tests.append(_keeps_invariants)
    if not tests:
        return {}

    def judge(resource: Any) -> None:
        for test in tests:
            test(resource)

    return {"__post_init__": judge}


def _one_of(choice: Choice) -> Post:
    options = tuple(option.name for option in choice.options.values())
    read, absent, most, least = attrgetter(*options), len(options), 1, int(choice.required)

    def test(resource: Any) -> None:
        if not least <= absent - read(resource).count(msgspec.UNSET) <= most:
            raise ValueError(choice.name)

    return test


def _keeps_invariants(resource: Any) -> None:
    """Those of an Observation with parts or an absent value are another's to judge: few have them beside a value."""
    if resource.dataAbsentReason is msgspec.UNSET and resource.component is msgspec.UNSET:
        return
    if _VALUE(resource).count(msgspec.UNSET) != len(_VALUES):
        raise ValueError("obs-6, obs-7")


_VALUES = tuple(
    option.name
    for item in elements("Observation")
    if isinstance(item, Choice) and item.name == "value"
    for option in item.options.values()
)
_VALUE = attrgetter(*_VALUES)


def _fields(type_name: str) -> tuple[list[tuple[Any, ...]], list[str]]:
    """The struct's fields, and the types that they are made of. No ``contained``: it is another's to decide."""
    required: list[tuple[Any, ...]] = []
    optional: list[tuple[Any, ...]] = []
    types: list[str] = []
    for item in elements(type_name):
        if isinstance(item, Element) and item.type == "Resource":
            continue
        options = tuple(item.options.values()) if isinstance(item, Choice) else (item,)
        for option in options:
            of_type = _type(option)
            if not is_primitive(option.type):
                types.append(option.type)
            if item.required and not isinstance(item, Choice):
                required.append((_field_name(option.name), of_type))
            else:
                optional.append(_optional(_field_name(option.name), of_type))
            alone = option.many or isinstance(item, Choice) or is_attribute(option)
            if is_primitive(option.type) and not alone:
                optional.append(_optional(f"{option.name}{_BESIDE}", _python_name("Element")))
                types.append("Element")
    return required + optional, types


def _optional(name: str, of_type: Any) -> tuple[Any, ...]:
    return name, Union[of_type, msgspec.UnsetType], msgspec.UNSET  # noqa: UP007 - a name stands for a type to come


def _type(element: Element) -> Any:
    if not is_primitive(element.type):
        single: Any = _python_name(element.type)
    elif element.codes:
        single = Literal[element.codes]
    elif element.type in _FORMATS and element.name != "id":  # ids are as many as resources: each is matched once
        single = _FORMATS[element.type]
    elif element.type in _INTEGERS:
        single = _INTEGERS[element.type]
    else:
        of_json = json_type(element.type)
        single = float if isinstance(of_json, tuple) else of_json
    return Annotated[list[single], msgspec.Meta(min_length=1)] if element.many else single
