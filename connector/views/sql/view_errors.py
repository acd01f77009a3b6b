"""How views fail: one place to make a ``ViewError`` with its code and its place in the view."""

from dataclasses import dataclass

from vht_federate.errors import ViewError

__all__ = ["Place", "view_error"]


@dataclass(frozen=True)
class Place:
    """Where in the view something stands: ``select[0].column[2].path``, and the character in that path."""

    trail: str = ""

    def member(self, name: str) -> "Place":
        return Place(f"{self.trail}.{name}" if self.trail else name)

    def item(self, index: int) -> "Place":
        return Place(f"{self.trail}[{index}]")

    def at(self, position: int) -> str:
        return f"{self.trail} at {position}"

    def __str__(self) -> str:
        return self.trail or "the view"


def view_error(code: str, place: Place, message: str, *, at: int | None = None, hint: str = "") -> ViewError:
    """``code`` without its prefix (``"TYPE"`` becomes ``VHT-VIEW-TYPE``); the message starts with the place."""
    where = str(place) if at is None else place.at(at)
    return ViewError(f"{where}: {message}", code=f"VHT-VIEW-{code}", hint=hint)
