"""Three plots as inline SVG, drawn for a card some 360 pixels wide: no script, nothing fetched from anywhere.

Colours come from the page's style sheet by class name. Every text is escaped. A plot is a picture of numbers that
stand beside it in a table: it has a title for those who cannot see it.
"""

from collections.abc import Mapping, Sequence
from math import ceil, floor
from typing import Any

from markupsafe import Markup

__all__ = ["budgets", "curve", "marginal"]

WIDTH = 360
LEFT, RIGHT, TOP = 40, 10, 10
PLOT = WIDTH - LEFT - RIGHT
LETTER = 6.2  # pixels that a letter takes at the plots' font size

_SVG = Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
_LINE = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
_TEXT = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
_PATH = Markup('<polyline class="{}" points="{}"/>')
_DOT = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}</title></circle>')
_RECT = Markup(
    '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
)  # fmt: skip


def curve(
    title: str, rounds: Sequence[int], values: Sequence[float | None], levels: Mapping[str, float | None]
) -> Markup:
    """``values`` by round as a line, and ``levels`` (class name -> value) as horizontal lines to compare with."""
    height, bottom = 210, 34
    defined = [value for value in (*values, *levels.values()) if value is not None]
    low, high, step = _range(defined)
    last = max(rounds, default=1)

    def across(number: float) -> float:
        return LEFT + (PLOT * (number - 1) / (last - 1) if last > 1 else PLOT / 2)

    def up(value: float) -> float:
        return TOP + (height - TOP - bottom) * (high - value) / (high - low)

    parts = []
    for index in range(round((high - low) / step) + 1):
        value = low + index * step
        parts.append(_LINE.format("rule", LEFT, up(value), WIDTH - RIGHT, up(value)))
        parts.append(_TEXT.format(LEFT - 6, up(value) + 4, "end", f"{value:.2f}"))
    parts += [_TEXT.format(across(number), height - 18, "middle", number) for number in rounds]
    parts.append(_TEXT.format(LEFT + PLOT / 2, height - 3, "middle", "round"))
    for name, level in levels.items():
        if level is not None:
            parts.append(_LINE.format(f"level {name}", LEFT, up(level), WIDTH - RIGHT, up(level)))
    points = [(across(number), up(value), number, value) for number, value in _defined(rounds, values)]
    parts.append(_PATH.format("line", " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)))
    parts += [_DOT.format("dot", x, y, f"round {number}: {value:.3f}") for x, y, number, value in points]
    return _drawn(height, title, parts)


def budgets(title: str, spent: Mapping[str, tuple[float, float]]) -> Markup:
    """A bar for each node: (spent, cap), as epsilon, each on the scale of the largest cap."""
    row, most = 42, max((cap for _, cap in spent.values()), default=1.0)
    parts = []
    for index, (name, (epsilon, cap)) in enumerate(spent.items()):
        top, wide = TOP + row * index, WIDTH - 2
        label = f"{epsilon:.3f} of {cap:g}"
        parts.append(_TEXT.format(1, top + 8, "start", name))
        parts.append(_TEXT.format(WIDTH - 1, top + 8, "end", label))
        parts.append(_RECT.format("track", 1, top + 14, wide * cap / most, 12, f"{name}: cap {cap:g}"))
        parts.append(_RECT.format("spent", 1, top + 14, wide * min(epsilon, cap) / most, 12, f"{name}: {label}"))
    return _drawn(TOP + row * len(spent), title, parts)


def marginal(title: str, figures: Mapping[str, Any]) -> Markup:
    """Shares by cell, real beside synthetic. ``found``: ``cells``, ``edges``, ``real``, ``synthetic``."""
    height, bottom = 150, 22
    cells, wide = figures["cells"], PLOT / len(figures["cells"])
    most = max(*figures["real"], *figures["synthetic"], 0.01)
    tall = height - TOP - bottom
    parts = [
        _LINE.format("rule", LEFT, TOP, WIDTH - RIGHT, TOP),
        _LINE.format("rule", LEFT, TOP + tall, WIDTH - RIGHT, TOP + tall),
        _TEXT.format(LEFT - 6, TOP + 4, "end", f"{100 * most:.0f} %"),
        _TEXT.format(LEFT - 6, TOP + tall + 4, "end", "0"),
    ]
    for index, cell in enumerate(cells):
        for offset, source in enumerate(("real", "synthetic")):
            share = figures[source][index]
            x = LEFT + wide * (index + 0.1 + 0.4 * offset)
            y = TOP + tall * (1 - share / most)
            parts.append(
                _RECT.format(source, x, y, wide * 0.4, tall * share / most, f"{cell}, {source}: {100 * share:.1f} %")
            )
    parts += [_TEXT.format(x, height - 6, "middle", label) for x, label in _ticks(figures, wide)]
    return _drawn(height, title, parts)


def _ticks(histogram: Mapping[str, Any], wide: float) -> list[tuple[float, str]]:
    """Edges of bins where they lie, names of levels under their bars; no label runs into the next."""
    cells, edges = histogram["cells"], histogram["edges"]
    if not edges:
        letters = max(3, int(wide / LETTER))
        return [(LEFT + wide * (index + 0.5), _cut(cell, letters)) for index, cell in enumerate(cells)]
    missing = len(cells) >= len(edges)
    places = [(LEFT + wide * index, f"{edge:g}") for index, edge in enumerate(edges)]
    free = LEFT + wide * (len(cells) - 0.5) - LETTER * 7 if missing else WIDTH
    every = ceil(max(len(label) + 1 for _, label in places) * LETTER / wide)
    fitting = [place for place in places[::every] if place[0] + LETTER * len(place[1]) / 2 < free]
    return [*fitting, (LEFT + wide * (len(cells) - 0.5), "missing")] if missing else fitting


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _range(values: Sequence[float]) -> tuple[float, float, float]:
    """Rising bounds on a grid around ``values``, and its step; at most some eight lines."""
    least, most = min(values, default=0.0), max(values, default=1.0)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if most - least < 6 * step or step == 0.2)
    low, high = floor(least / step - 0.25) * step, ceil(most / step + 0.25) * step
    return low, high, step


def _defined(rounds: Sequence[int], values: Sequence[float | None]) -> list[tuple[int, float]]:
    return [(number, value) for number, value in zip(rounds, values, strict=True) if value is not None]


def _drawn(height: float, title: str, parts: Sequence[Markup]) -> Markup:
    return _SVG.format(WIDTH, round(height), title, Markup("").join(parts))
