"""What the functions of the FHIRPath subset need of the compiler of paths, which calls them."""

from typing import Protocol

from connector.views.sql.expressions import Expression, Parameter
from connector.views.sql.grammar import Node
from connector.views.sql.values import Choosing, Value
from connector.views.sql.view_errors import Place

__all__ = ["Compiler"]


class Compiler(Protocol):
    """``connector.views.sql.paths.PathCompiler``. Whatever compiles a path raises ViewError VHT-VIEW-… with the place
    in the view."""

    place: Place

    def fresh(self) -> Parameter:
        """A parameter that no lambda binds yet."""

    def value(self, node: Node, focus: Value) -> Value:
        """``node`` with ``focus`` as ``$this``. Raises: VHT-VIEW-CHOICE for a choice element that is still open."""

    def any(self, node: Node, focus: Value) -> Value | Choosing:
        """As ``value``, but a choice element may still be open."""

    def condition(self, node: Node, focus: Value) -> Expression:
        """A boolean. Raises: VHT-VIEW-TYPE for a path that can be nothing of the kind."""

    def single(self, value: Value, at: int) -> Value:
        """The one item; more than one stops the query."""

    def elements(self, value: Value) -> Expression:
        """The elements in their places, NULL for one without a value; may be NULL itself when empty."""

    def values(self, value: Value) -> Expression:
        """A list without NULLs; may be NULL itself when empty."""

    def refuse_growth(self, at: int) -> None:
        """Raises: VHT-VIEW-LIMIT where the view may not put text together."""

    def step(self, source: Value, name: str, at: int) -> Value | Choosing:
        """``source.name``. Raises: VHT-VIEW-ELEMENT where FHIR defines no such element."""
