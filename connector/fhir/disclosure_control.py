"""How figures about patients are told to people outside the node: counts in tens, small groups and great ages not."""

__all__ = ["OLDEST_AGE", "SMALLEST_CELL", "disclosable_count"]

OLDEST_AGE = 90  # years: whoever is older is told to be 90 (as in 45 CFR 164.514(b)(2)(i)(C))
SMALLEST_CELL = 10  # unless the node sets another


def disclosable_count(count: int, smallest_cell: int = SMALLEST_CELL) -> int | None:
    """``count`` to the nearest ten; None for fewer than ``smallest_cell``, and nothing told is below that."""
    return None if count < smallest_cell else max(smallest_cell, round(count, -1))
