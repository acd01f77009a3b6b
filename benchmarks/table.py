"""What a benchmark says: rows of a value beside a peer's or a floor's, measured in the same run."""

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from vht_federate.output import table

__all__ = ["RESULTS", "NotHere", "Row", "report"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """``ratio`` is value / peer_value where there is a peer; ``goal`` is words, ``holds`` its judgement."""

    metric: str
    value: float
    unit: str
    goal: str
    holds: bool
    peer: str | None = None
    peer_value: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if not self.peer_value else round(self.value / self.peer_value, 4)


class NotHere(Exception):
    """This machine lacks what the benchmark measures; says what."""


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    torch = sys.modules.get("torch")
    gpu = (
        {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__} if torch and torch.cuda.is_available() else {}
    )
    return {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(), **gpu}


def report(name: str, rows: list[Row]) -> bool:
    """Write ``results/NAME.json``, print the table, and say whether every goal holds."""
    RESULTS.mkdir(exist_ok=True)
    entries = [{**asdict(row), "holds": bool(row.holds), "ratio": row.ratio} for row in rows]
    result = {"name": name, "machine": machine(), "rows": entries}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2, default=float) + "\n")
    columns = ["metric", "value", "unit", "peer", "peer value", "ratio", "goal", "holds"]
    cells = [
        [r.metric, f"{r.value:.4g}", r.unit, r.peer, r.peer_value and f"{r.peer_value:.4g}", r.ratio, r.goal,
         "yes" if r.holds else "NO"]
        for r in rows
    ]  # fmt: skip
    Console(width=150).print(table(name, columns, cells))
    return all(row.holds for row in rows)
