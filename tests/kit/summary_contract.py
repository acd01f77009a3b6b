"""What every demo's summary.json and report.html hold, whatever the data."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from kit.places import ROOT

PAGE = ROOT / "docs" / "reference" / "summary.md"
KEYS: dict[str, type | tuple[type, ...]] = {
    "schema_version": str,
    "seconds_total": float,
    "nodes": int,
    "patients": int,
    "rounds": int,
    "phase_seconds_median": float,
    "epsilon": float,
    "delta": float,
    "unit": str,
    "accountant": str,
    "auc_federated": float,
    "accuracy_mean_over_nodes": float,
    "bytes_out_per_node": dict,
    "cohort": dict,
    "ledger": dict,
    "audit": dict,
    "paths": dict,
    "harness": dict,
}
FIGURES = ("auc_pooled_nonprivate", "auc_local_mean", "accuracy_majority", "real_auc", "tstr_auc")
DISTANCES = ("tvd_mean", "tvd_worst")
PATHS = ("package", "cohort", "evidence", "trust", "report")


def read_summary(out: Path) -> dict[str, Any]:
    """``out/summary.json``, after every key of it was found with its type.

    The cohort's gate may withhold a cohort: then nothing is said of one, and the reason says why.
    """
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    cohort = (out / "run" / "cohort").exists()
    assert cohort != ("the cohort is withheld" in summary["reason"])
    for key, kind in KEYS.items():
        if key == "cohort" and not cohort:
            assert summary[key] is None
        else:
            assert type(summary[key]) is kind, key
    assert set(summary["about"]) | set(summary["not_private"]) <= set(summary)
    documented = set(re.findall(r"`([a-z_0-9]+)`", PAGE.read_text()))
    assert set(summary) | set(summary["harness"]) <= documented
    _check_parts(summary, cohort)
    _check_harness(summary["harness"], cohort)
    return summary


def _check_parts(summary: dict[str, Any], cohort: bool) -> None:
    names = set(summary["participants"])
    assert (summary["unit"], summary["nodes"], summary["patients"] > 0) == ("patient", len(names), True)
    assert set(summary["bytes_out_per_node"]) >= names
    assert all(type(size) is int and size > 0 for size in summary["bytes_out_per_node"].values())
    assert set(summary["ledger"]) >= names
    for account in summary["ledger"].values():
        assert (type(account["cap"]), type(account["spent"]), type(account["entries"])) == (float, float, int)
        assert account["spent"] <= account["cap"]
    assert summary["audit"]["verified"] is True
    assert type(summary["audit"]["entries"]) is int
    if cohort:
        assert summary["cohort"]["rows"] > 0
        assert 0 < summary["cohort"]["epsilon"] < summary["epsilon"]
    for name in PATHS:
        path = summary["paths"][name]
        assert (path is None) if name == "cohort" and not cohort else Path(path).exists(), name


def _check_harness(truth: dict[str, Any], cohort: bool) -> None:
    assert truth["private"] is False
    assert "never published" in truth["about"]
    for name in (*FIGURES, *DISTANCES):
        if name in ("tstr_auc", *DISTANCES) and not cohort:
            assert truth[name] is None, name
        else:
            assert type(truth[name]) is float, name
            assert 0 <= truth[name] <= 1, name


class _Fetched(HTMLParser):
    """Addresses that a page would fetch or lead to, and its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.elements: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "xlink:href")
        ]


def check_report(page: str) -> list[str]:
    """The elements of a report that fetches nothing, runs nothing, and marks what is not private."""
    parser = _Fetched()
    parser.feed(page)
    assert [address for address in parser.addresses if not address.startswith("data:")] == []
    assert not {"script", "iframe", "object", "embed", "img", "form"} & set(parser.elements)
    assert re.search(r"@import|url\(", page) is None
    assert "Not private" in page
    return parser.elements
