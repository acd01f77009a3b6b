"""Who is who within one Bundle (FHIR R4, bundle.html#references): entries get the id that they are known by, and what
refers to them refers to ``Type/id``, as in NDJSON.

An entry is named by its ``fullUrl``: a ``urn:uuid:`` that a transaction makes up before a server gives ids, or the
resource's own address. A resource without an id is known by its fullUrl's. A reference names an entry by fullUrl, by an
address relative to that of its own entry, or, in a transaction, by a search for an identifier that finds exactly one.
What names no entry stays as it is: ``Type/id`` may be in another file.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

from connector.fhir.resources import KEPT
from connector.fhir.subject_keys import ID

__all__ = ["BundleReferences"]

Node = dict[str, Any]
_ADDRESS = re.compile(rf"(https?://[^\s?#]+/)([A-Z][A-Za-z]+)/({ID.pattern})")
_URN = re.compile(rf"urn:(?:uuid|oid):({ID.pattern})")
_VERSION = re.compile(r"/_history/[^/\s]+$")
_RELATIVE = re.compile(rf"[A-Z][A-Za-z]+/{ID.pattern}")


class BundleReferences:
    """The names within the Bundle of ``entries``. Resources without an id have one afterwards, where they can."""

    def __init__(self, entries: list[Any]) -> None:
        self._resources = list(_resources(entries))
        self._names: dict[str, str | None] = {}  # None: of two entries
        for address, resource in self._resources:
            if address is not None and "id" not in resource and (own := _id_of(address, resource)) is not None:
                resource["id"] = own
            if address is not None and (name := _name(resource)) is not None:
                key = _key(address)
                self._names[key] = name if self._names.get(key, name) == name else None

    def resolve(self, entry: Node) -> None:
        """Every reference in the entry's resource becomes ``Type/id`` where it names an entry. Of types that are not
        kept nothing is read, and nothing is resolved."""
        resource = entry["resource"]
        kind = resource.get("resourceType")
        if type(kind) is not str or kind not in KEPT:
            return
        address = entry.get("fullUrl")
        match = _ADDRESS.fullmatch(address) if type(address) is str else None
        waiting: list[Any] = [resource]
        while waiting:
            node = waiting.pop()
            if type(node) is dict:
                if type(target := node.get("reference")) is str:
                    node["reference"] = self._resolved(target, match[1] if match else None)
                waiting.extend(value for value in node.values() if type(value) in (dict, list))
            else:
                waiting.extend(value for value in node if type(value) in (dict, list))

    def _resolved(self, target: str, base: str | None) -> str:
        if "?" in target:
            return self._found(target) or target
        plain = _VERSION.sub("", target)
        if base is not None and _RELATIVE.fullmatch(plain):
            plain = base + plain
        return self._names.get(_key(plain)) or target

    def _found(self, search: str) -> str | None:
        """``Type?identifier=[system|]value``: the one resource of that type in this Bundle that has it."""
        kind, _, query = search.partition("?")
        parameters = parse_qsl(query, keep_blank_values=True)
        if len(parameters) != 1 or parameters[0][0] != "identifier":
            return None
        system, bar, value = parameters[0][1].rpartition("|")
        wanted = (kind, system if bar else None, value)
        found = self._by_identifier.get(wanted, set())
        return next(iter(found)) if len(found) == 1 else None

    @cached_property
    def _by_identifier(self) -> dict[tuple[str, str | None, str], set[str]]:
        """(type, system, value) -> names. Under None: whatever the system; under "": without one."""
        names: dict[tuple[str, str | None, str], set[str]] = {}
        for _, resource in self._resources:
            name, identifiers = _name(resource), resource.get("identifier")
            for identifier in identifiers if type(identifiers) is list else [identifiers]:
                if name is not None and type(identifier) is dict and type(identifier.get("value")) is str:
                    system = identifier.get("system")
                    for under in (None, system if type(system) is str else ""):
                        names.setdefault((resource["resourceType"], under, identifier["value"]), set()).add(name)
        return names


def _resources(entries: Iterable[Any]) -> Iterable[tuple[str | None, Node]]:
    for entry in entries:
        resource = entry.get("resource") if type(entry) is dict else None
        if type(resource) is dict:
            address = entry.get("fullUrl")
            yield address if type(address) is str else None, resource


def _id_of(address: str, resource: Node) -> str | None:
    """The id in a fullUrl."""
    if urn := _URN.fullmatch(address):
        return urn[1]
    match = _ADDRESS.fullmatch(address)
    return match[3] if match and match[2] == resource.get("resourceType") else None


def _name(resource: Node) -> str | None:
    kind, own = resource.get("resourceType"), resource.get("id")
    return f"{kind}/{own}" if type(kind) is str and type(own) is str else None


def _key(address: str) -> str:
    """UUIDs are the same in either case (RFC 4122)."""
    return address.lower() if address.startswith("urn:uuid:") else address
