"""The table of ``make test-hostile``: what was tried against each wall, what answered, and that the attack works
where the wall is taken down on purpose.

A test of a wall carries ``@pytest.mark.hostile(KEY)`` and says through the fixture ``answered`` what the attacker got;
its control carries ``@pytest.mark.hostile(KEY, control=True)``. An attack of ``hostile_attacks`` without a wall that
held, without a word of what answered or without a control that succeeded fails the run, as long as the whole of it was
asked for.
"""

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from kit.hostile_attacks import ATTACKS

__all__ = ["Answered", "HostileTable"]

Answered = Callable[[str], None]
_WIDTHS = (6, 62, 40, 16, 12)


@dataclass
class _Row:
    answers: Counter[str] = field(default_factory=Counter)
    walls: Counter[str] = field(default_factory=Counter)  # outcomes
    controls: Counter[str] = field(default_factory=Counter)
    reasons: set[str] = field(default_factory=set)  # why something was skipped

    def lacks(self) -> str | None:
        """Why this is no proof."""
        if self.walls["failed"] or self.controls["failed"]:
            return "a test failed"
        if not self.walls:
            return "no test of the wall ran"
        if not self.controls:
            return "no control ran"
        if self.walls["passed"] and not self.answers:
            return "no test says what answered"
        return None


@dataclass
class HostileTable:
    """Collects the reports of one run, of whatever process, and prints."""

    rows: dict[str, _Row] = field(default_factory=dict)

    @staticmethod
    def note(items: Iterable[pytest.Item]) -> None:
        """Let each report say which attacks its test is about. Raises UsageError for an attack that nobody listed."""
        for item in items:
            for marker in item.iter_markers("hostile"):
                (key,) = marker.args
                if key not in ATTACKS:
                    raise pytest.UsageError(f"{item.nodeid}: there is no attack {key}")
                item.user_properties.append(("hostile", [key, bool(marker.kwargs.get("control"))]))

    def add(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        for name, value in report.user_properties:
            if name == "hostile":
                key, is_control = value
                row = self.rows.setdefault(key, _Row())
                (row.controls if is_control else row.walls)[report.outcome] += 1
                if report.skipped and isinstance(report.longrepr, tuple):
                    row.reasons.add(report.longrepr[2])
        walls = [value[0] for name, value in report.user_properties if name == "hostile" and not value[1]]
        if report.passed:
            for name, answer in report.user_properties:
                if name == "answered":
                    for key in walls:
                        self.rows[key].answers[answer] += 1

    def lacking(self) -> dict[str, str]:
        """Attack by attack, why it is not proven."""
        why = {key: self.rows[key].lacks() if key in self.rows else "no test ran" for key in ATTACKS}
        return {key: reason for key, reason in why.items() if reason}

    def write(self, reporter: Any, *, whole: bool) -> None:
        reporter.section("attacks, what answered them, and whether each works without its wall")
        self._line(reporter, ("item", "tried", "answered", "held", "control"))
        lacking = self.lacking() if whole else {}
        for key, attack in ATTACKS.items():
            if key not in self.rows and not whole:
                continue
            row = self.rows.get(key, _Row())
            held = "NOT PROVEN" if key in lacking else _of(row.walls)
            self._line(reporter, (attack.item, attack.tried, "; ".join(row.answers) or "-", held, _of(row.controls)))
            for reason in sorted(row.reasons):
                reporter.write_line(f"       skipped: {reason}")
            if key in lacking:
                reporter.write_line(f"       {key}: {lacking[key]}", red=True)

    @staticmethod
    def _line(reporter: Any, cells: tuple[str, ...]) -> None:
        columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, _WIDTHS, strict=True)]
        for number in range(max(map(len, columns))):
            parts = [column[number] if number < len(column) else "" for column in columns]
            line = "  ".join(part.ljust(width) for part, width in zip(parts, _WIDTHS, strict=True))
            reporter.write_line(line.rstrip())


def _of(outcomes: Counter[str]) -> str:
    total = outcomes.total()
    if not total:
        return "-"
    skipped = f", {outcomes['skipped']} skipped" if outcomes["skipped"] else ""
    return f"{outcomes['passed']} of {total - outcomes['skipped']}{skipped}"
