"""What a coordinator might do to a node's exported log; each says what the verification has to name."""

from typing import Any

from kit.tampered_bundles import FILE
from vht_federate.evidence.entry import LogEntry

__all__ = [
    "Export",
    "cheaper",
    "cut",
    "cut_with_heads",
    "drop",
    "drop_and_renumber",
    "duplicate",
    "extra_field",
    "hide",
    "no_heads",
    "other_head",
    "other_leaf",
    "other_time",
    "place_of",
    "quieter",
    "swap",
    "swap_and_renumber",
]


Export = dict[str, Any]


def place_of(export: Export, kind: str, number: int = 0) -> int:
    indices = [item["index"] for item in export["entries"] if item.get("kind") == kind]
    return int(indices[number])


def drop(export: Export) -> str:
    index = place_of(export, "round.begun", 1)
    del export["entries"][index]
    return f"entry {index}"


def drop_and_renumber(export: Export) -> str:
    index = place_of(export, "round.begun", 1)
    del export["entries"][index]
    for number, item in enumerate(export["entries"]):
        if "index" in item:
            item["index"] = number
    return f"entry {index}"


def swap(export: Export) -> str:
    index = place_of(export, "round.begun")
    items = export["entries"]
    items[index], items[index + 1] = items[index + 1], items[index]
    return f"entry {index}"


def swap_and_renumber(export: Export) -> str:
    place = swap(export)
    for number, item in enumerate(export["entries"]):
        if "index" in item:
            item["index"] = number
    return place


def cut(export: Export) -> str:
    del export["entries"][-1]
    return "entry"


def cut_with_heads(export: Export) -> str:
    """Cut the end and everything signed after it; the older head is genuine."""
    del export["entries"][-1]
    export["heads"].pop()
    export["head"] = export["heads"][-1]
    return FILE


def cheaper(export: Export) -> str:
    index = place_of(export, "visit.closed")
    export["entries"][index]["body"]["epsilon"]["train"] = 0.01
    return f"entry {index}"


def quieter(export: Export) -> str:
    index = place_of(export, "round.begun")
    export["entries"][index]["body"]["events"] = []
    return f"entry {index}"


def other_time(export: Export) -> str:
    index = place_of(export, "visit.approved")
    export["entries"][index]["time"] = "2026-06-01T00:00:00+00:00"
    return f"entry {index}"


def hide(export: Export) -> str:
    """Replace an entry by its own hash: the Merkle root stays."""
    index = place_of(export, "round.begun")
    export["entries"][index] = {"leaf": LogEntry.from_dict(export["entries"][index]).leaf().hex()}
    return FILE


def duplicate(export: Export) -> str:
    index = place_of(export, "round.released")
    export["entries"].insert(index, dict(export["entries"][index]))
    return f"entry {index + 1}"


def other_leaf(export: Export) -> str:
    index = next(number for number, item in enumerate(export["entries"]) if set(item) == {"leaf"})
    export["entries"][index] = {"leaf": "00" * 32}
    return "entr"  # a range: which leaf of it, only the node could say


def other_head(export: Export) -> str:
    export["head"] = export["heads"][0]
    return FILE


def no_heads(export: Export) -> str:
    """Without the intermediate heads only the last one is left to protest."""
    cheaper(export)
    export["heads"] = []
    return FILE


def extra_field(export: Export) -> str:
    export["comment"] = "all is well"
    return FILE
