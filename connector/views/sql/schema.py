"""The narrow read schema: of every resource only the elements that the view's paths touch.

Paths are compiled twice. The first time they grow this tree; the second time they are written against its final
form, so that what is read once serves every path.
"""

from dataclasses import dataclass, field

from connector.fhir.r4.elements import Element, is_primitive, kind

__all__ = ["ReadNode", "identifier"]

_PLAIN = {"boolean": "BOOLEAN", "integer": "BIGINT", "decimal": "DOUBLE"}


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@dataclass
class ReadNode:
    """One element as it is read. ``whole`` keeps it as JSON; ``exact`` keeps a decimal's digits as text."""

    type: str
    many: bool = False
    fields: "dict[str, ReadNode]" = field(default_factory=dict)
    whole: bool = False
    exact: bool = False

    def child(self, element: Element) -> "ReadNode":
        return self.fields.setdefault(element.name, ReadNode(element.type, element.many))

    def duck_type(self) -> str:
        return self.one_type() + ("[]" if self.many else "")

    def one_type(self) -> str:
        """DuckDB's type for one item. An object without a wanted member still reads as a struct, not as NULL."""
        if self.whole:
            return "JSON"
        if is_primitive(self.type):
            return "VARCHAR" if self.exact else _PLAIN.get(kind(self.type), "VARCHAR")
        members = {name: node.duck_type() for name, node in sorted(self.fields.items())} or {"id": "VARCHAR"}
        return "STRUCT(" + ", ".join(f"{identifier(name)} {type_}" for name, type_ in members.items()) + ")"

    def structure(self) -> str:
        """The same as a ``from_json`` structure for one item, for elements kept whole and opened later."""
        members = [f'"{name}":{node._opened()}' for name, node in sorted(self.fields.items())] or ['"id":"VARCHAR"']
        return "{" + ",".join(members) + "}"

    def _opened(self) -> str:
        structure_text = f'"{self.one_type()}"' if self.whole or is_primitive(self.type) else self.structure()
        return f"[{structure_text}]" if self.many else structure_text
