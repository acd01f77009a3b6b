"""What ``vht node`` shows to people: budgets, visits, intake, as tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vht_federate.domain.budget import POPULATIONS
from vht_federate.output import Rows, table
from vht_federate.text import counted, moment_text

__all__ = [
    "budget_table",
    "connection_lines",
    "explanation_table",
    "intake_table",
    "patients_table",
    "pull_table",
    "quarantine_table",
    "source_tables",
    "sources_table",
    "unfilled_table",
    "visit_tables",
    "visits_table",
]


MOST_IGNORED = 20


def budget_table(budget: Mapping[str, Any]) -> Rows:
    """Every account of the ledger: the dataset over all permits, then each permit."""
    rows = [
        (
            kind,
            name,
            account["cap"],
            *(f"{account[part][p]:.3f}" for part in ("spent", "reserved") for p in POPULATIONS),
        )
        for kind in ("datasets", "permits")
        for name, account in budget[kind].items()
    ]
    columns = ["account", "id", "cap", "spent train", "spent test", "reserved train", "reserved test"]
    return table("Budget (epsilon)", columns, rows)


def patients_table(lines: Sequence[Mapping[str, Any]]) -> Rows:
    """How many patients remain under each cap."""
    names = ["cap", "of", "epsilon", "patients", "untouched", "half", "little"]
    rows = [tuple("" if line[name] is None else line[name] for name in names) for line in lines]
    columns = ["cap", "of", "epsilon", "patients", "in no run", "half or more left", "under a tenth left"]
    return table("Patients under each cap", columns, rows)


def intake_table(folder: Any, report: Mapping[str, Any]) -> Rows:
    """Lines and values of one intake, with the reasons of what was set aside."""
    names: tuple[str, ...] = ("files", "lines", "accepted", "quarantined", "duplicate", "superseded", "replaced")
    names += ("deleted", "entered_in_error")
    rows = [(name.replace("_", " "), report[name]) for name in names]
    rows += [(f"  line quarantined: {reason}", count) for reason, count in report["reasons"].items()]
    rows += [(f"values {name}", count) for name, count in report["values"].items()]
    rows += [(f"  value quarantined: {reason}", count) for reason, count in report["value_reasons"].items()]
    dangling = report["dangling_references"].items()
    rows += [(f"refers to what is not held: {element}", count) for element, count in dangling]
    rows += _sampled(report["sample"] or {})
    rows += _ignored(report["ignored"])
    rows += _unfilled(report.get("unfilled", []))
    return table(f"Intake of {folder}", ["what", "count"], rows)


def _ignored(entries: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, Any]]:
    """What lay in the folder and was not read."""
    if entries:
        yield "ignored", len(entries)
    for entry in entries[:MOST_IGNORED]:
        yield f"  {entry['name']}", entry["reason"]
    if len(entries) > MOST_IGNORED:
        yield "  and more, all with --json", len(entries) - MOST_IGNORED


def _unfilled(ports: Sequence[Mapping[str, Any]] | None) -> Iterator[tuple[str, Any]]:
    """Which ports the data can never fill, by profile; all about them with 'vht node codes check'."""
    if ports is None:
        yield "never filled", "cannot be told: see vht node codes check"
        return
    names: dict[str, list[str]] = {}
    for port in ports:
        names.setdefault(f"{port['component']}, {port['profile']}", []).append(port["port"])
    for profile, unfilled in names.items():
        yield f"never filled: {profile}", ", ".join(unfilled)


def unfilled_table(ports: Sequence[Mapping[str, Any]]) -> Rows:
    """Ports that the data can never fill, with what a study would see."""
    rows = [
        (
            f"{port['component']}, {port['profile']}",
            port["port"],
            port["asks"],
            ", ".join(port["holds"]) or "nothing of this kind",
            port["then"],
        )
        for port in ports
    ]
    return table("Never filled here", ["profile", "port", "asks for", "the data hold", "so"], rows)


def _sampled(sample: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What FHIR's models say of the sample: "of 40 sampled Observation, 3 have an element that R4B does not know"."""
    for kind, report in sample.items():
        yield f"sampled {kind}: R4B finds fault with", f"{report['faulty']} of {report['sampled']}"
        for finding in report["findings"]:
            yield f"  {finding['path']}: {finding['says']}", finding["resources"]


def pull_table(name: str, pulled: Mapping[str, Any]) -> Rows:
    """What came from a FHIR server."""
    return table(f"Pull of {name}", ["what", ""], pulled.items())


def sources_table(sources: Sequence[Mapping[str, Any]]) -> Rows:
    """Where the data comes from, and whether it still does."""
    rows = [
        (
            source["name"],
            source["state"],
            source.get("every") or "",
            moment_text(source["succeeded_at"]),
            moment_text(source["next_at"]),
            source["error"]["code"] if source["error"] else "",
        )
        for source in sources
    ]
    return table("Sources", ["source", "state", "every", "last success", "next", "error"], rows)


def source_tables(source: Mapping[str, Any]) -> list[Rows]:
    """One source and its latest pulls."""
    names = ("state", "base_url", "mode", "level", "every", "begun_at", "succeeded_at", "next_at", "failures")
    rows = [
        (name.replace("_", " "), moment_text(source[name]) if name.endswith("_at") else source[name])
        for name in names
        if source.get(name) is not None
    ]
    if source["error"]:
        rows.append(("error", f"{source['error']['code']}: {source['error']['message']}"))
    runs = [
        (
            moment_text(run["ended_at"]),
            run["asked_by"] or "interval",
            moment_text(run["since"]) if run["since"] else "everything",
            run["lines"],
            run["code"] or ", ".join(f"{count} {name}" for name, count in brought.items() if count),
        )
        for run in source["runs"]
        for brought in [run["counts"] | {"unreadable deletions": run["unreadable"]}]
    ]
    facts = table(f"Source {source['name']}", ["what", ""], rows)
    return [facts, table("Pulls", ["ended", "asked by", "since", "lines", "taken in"], runs)] if runs else [facts]


def isolation_line(isolation: Mapping[str, Any]) -> str:
    """What the node requires of an enclave and what its machine gives; where that is too little, what is missing."""
    walls = ", ".join(isolation["walls"]) or "no wall"
    line = f"enclaves: {isolation['required']} is required; this machine gives {isolation['level']} ({walls})"
    return "; ".join([line, *isolation["missing"]])


def quarantine_table(entries: Sequence[Mapping[str, Any]]) -> Rows:
    columns = ["file", "line", "kind", "reason", "path"]
    return table("Set aside", columns, [tuple(entry[name] for name in columns) for entry in entries])


def connection_lines(status: Mapping[str, Any]) -> list[str]:
    """Of a node that runs and has a coordinator: is its SuperNode connected, and if not, why?"""
    processes = status.get("supernode")
    if not processes:
        return []
    supernode = processes["supernode"]
    words = f"coordinator {status['coordinator']}: {supernode['connection']}"
    lines = [f"{words}, {supernode['reason']}" if supernode["reason"] else words]
    if processes["executor"]["pid"] is None:
        lines.append("the executor of its messages is down; it is started again")
    return lines


def explanation_table(explained: Sequence[Mapping[str, Any]]) -> Rows:
    """Entries that are wrong in one way in one file are one row."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for entry in explained:
        r4b = entry["r4b"]
        says = "not asked" if r4b is None else "; ".join(f"{f['path']}: {f['says']}" for f in r4b) or "fits"
        key = (entry["file"], entry["reason"], entry["path"], entry["what"], says, entry["do"], entry["source"])
        groups.setdefault(key, []).append(entry["line"])
    columns = ["file", "reason", "element", "what is wrong", "R4B", "what to do", "source", "lines"]
    rows = [(*key, _lines(lines)) for key, lines in groups.items()]
    return table("Set aside, explained", columns, rows)


def _lines(numbers: Sequence[int]) -> str:
    first = ", ".join(map(str, numbers[:5]))
    return first if len(numbers) <= 5 else f"{first} … ({len(numbers)})"


def visits_table(visits: Sequence[Mapping[str, Any]]) -> Rows:
    rows = [(v["visit"], v["study_id"], v["state"], v["code"], v["user"], v["permit_id"]) for v in visits]
    return table("Visits", ["visit", "study", "state", "code", "user", "permit"], rows)


def visit_tables(visit: Mapping[str, Any]) -> list[Rows]:
    """All that an operator decides on, and what has left so far."""
    rows = [
        (
            f"{call['job']} {call['round']}",
            call["begun_at"],
            call["released_at"] or "nothing left",
            call["output_bytes"],
            call["output_sha256"],
        )
        for call in visit["rounds"]
    ]
    columns = ["call", "begun", "left", "bytes", "sha256 of what left"]
    tables = [table(f"Visit {visit['visit']}", ["what", ""], _facts(visit))]
    if unfilled := visit.get("unfilled"):
        tables.append(unfilled_table(unfilled))
    return [*tables, table("What left", columns, rows)] if rows else tables


def _facts(visit: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    permit, component = visit["permit"], visit["component"]
    yield "state", " ".join(part for part in (visit["state"], visit["code"], visit["reason"]) if part)
    yield "study", f"{visit['study_id']}: {visit['title']}"
    yield "asked by", f"{visit['user']}, for {permit['controller']}"
    yield "purpose", f"{visit['purpose']}: {permit['purpose_text']}"
    yield "permit", f"{visit['permit_id']} of {permit['hdab']}, until {visit['permit_expires_at']}"
    yield "component", f"{component['name']} {component['version']}, profile {component['profile']}"
    yield "its digest", component["digest"]
    yield "reads", ", ".join(visit["request"]["columns"])
    yield "opt-outs", "overridden by law" if permit["overrides_opt_out"] else f"as of {permit['issued_at']}"
    yield (
        "at least",
        f"{counted(permit['minimum_cohort'], 'patient')} here, {counted(permit['minimum_nodes'], 'hospital')}",
    )
    yield "would cost", f"epsilon {_epsilon(visit['epsilon_planned'])} at delta {visit['delta']:g}"
    yield "has cost", f"epsilon {_epsilon(visit['epsilon_spent'])}"
    yield "permit's ceiling", f"epsilon {permit['epsilon']:g} at delta {permit['delta']:g}"
    yield "calls", f"{visit['calls_begun']} of {visit['calls_planned']} begun"
    yield "decided by", visit["operator"]
    yield "enclave", visit["isolation"]


def _epsilon(value: Mapping[str, float]) -> str:
    return ", ".join(f"{value[population]:.3f} ({population})" for population in POPULATIONS)
