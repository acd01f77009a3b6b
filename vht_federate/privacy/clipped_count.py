"""How many patients of a step stayed within the clipping norm: what adaptive clipping asks, with noise."""

from dataclasses import dataclass

__all__ = ["Tally"]


@dataclass(repr=False)
class Tally:
    """``seen``: patients with a finite contribution; ``within``: those of them whose contribution was not scaled."""

    within: int = 0
    seen: int = 0

    def add(self, within: int, seen: int) -> None:
        self.within += within
        self.seen += seen

    @property
    def centred(self) -> float:
        """Sum over patients of +1/2 within and -1/2 beyond the norm. One patient moves it by at most 1/2."""
        return self.within - self.seen / 2

    def __repr__(self) -> str:
        return "Tally(redacted)"
