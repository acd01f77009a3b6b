"""Is a text a table of numbers? Also asked of long texts within JSON."""

import re

__all__ = ["holds_table", "is_row"]

_SEPARATORS = (",", ";", "\t", "|", None)  # None: any blanks
_LINES = 20  # of a table
_LONE_LINES = 200  # of a single column: constants in code stand like this too
_NUMBERS = 2_000  # in one text; a card with every curve of an evaluation has a few hundred
_NUMBER = re.compile(r"[-+]?(\d{1,20}\.?\d{0,20}|\.\d{1,20})(e[+-]?\d{1,3})?", re.IGNORECASE)
_STANDING = re.compile(r"(?<![\w.+/=-])[-+]?(?:\d{1,20}\.?\d{0,20}|\.\d{1,20})(?![\w+/=])")


def holds_table(text: str) -> bool:
    """Lines with equally many cells, most of them numbers or empty; or simply very many numbers."""
    lines = text.splitlines()
    if any(_is_table(lines, separator) for separator in _SEPARATORS):
        return True
    return any(count > _NUMBERS for count, _ in enumerate(_STANDING.finditer(text), start=1))


def is_row(text: str) -> bool:
    """Two or more numbers and nothing else, with separators: "63,145.5" or "63 | 145"."""
    return len(text) <= 4_096 and any(_looks_like_row(_cells(text, separator)) for separator in _SEPARATORS)


def _is_table(lines: list[str], separator: str | None) -> bool:
    run, lone, width = 0, 0, 0
    for line in lines:
        cells = _cells(line, separator)
        fits = _looks_like_row(cells)
        run = run + 1 if fits and len(cells) == width else int(fits)
        filled = [cell for cell in cells if cell]
        lone = lone + 1 if len(filled) == 1 and _NUMBER.fullmatch(filled[0]) else 0
        width = len(cells)
        if run >= _LINES or lone >= _LONE_LINES:
            return True
    return False


def _cells(line: str, separator: str | None) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(separator)]


def _looks_like_row(cells: list[str]) -> bool:
    """Of two cells both are numbers; of more, half are, or empty."""
    numbers = sum(_NUMBER.fullmatch(cell) is not None for cell in cells)
    if len(cells) == 2:
        return numbers == 2
    return len(cells) > 2 and numbers > 0 and (numbers + cells.count("")) * 2 >= len(cells)
