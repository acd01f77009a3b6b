"""``vht node quality``: what a study with a component would find at this node, and what it would lose."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from connector.cli.node_access import State, alone, connect, running
from connector.cli.output_tables import unfilled_table
from vht_federate import output

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command("quality")
@output.command("node quality")
def quality(
    state: State,
    component: Annotated[str | None, typer.Option(help="An installed component; all by default.")] = None,
    profile: Annotated[str | None, typer.Option(help="One of its profiles; all by default.")] = None,
    shareable: Annotated[
        bool, typer.Option("--shareable", help="Rounded and suppressed, to pass on to those who plan a study.")
    ] = False,
) -> None:
    """Survey the data: per feature how many patients have it, units, losses, what was set aside, time span."""
    if running(state):
        options = {"component": component, "profile": profile, "shareable": shareable}
        with connect(state) as client:
            data = client.get(
                "/api/quality", params={name: value for name, value in options.items() if value is not None}
            )
    else:
        data = alone(state, lambda node: _alone(node, component, profile, shareable))
    tables = [table for survey in data["surveys"] for table in _tables(survey)]
    output.emit("node quality", data, *tables)


def _alone(node: Any, component: str | None, profile: str | None, shareable: bool) -> dict[str, Any]:
    from connector.listeners.quality_api import quality as surveyed

    return surveyed(node, component, profile, shareable=shareable)


def _tables(survey: Mapping[str, Any]) -> Iterator[output.Rows | str]:
    cohort, smallest = survey["cohort"], survey["smallest_cell"]
    name = f"{survey['component']} {survey['version']}, profile {survey['profile']}"
    yield output.table(
        f"{name}: {_shown(cohort['patients'], smallest)} of {_shown(survey['store_patients'], smallest)} patients",
        ["what", "patients"],
        [
            *((f"lost: {loss['says']}", _shown(loss["patients"], smallest)) for loss in survey["losses"]),
            ("in the cohort", _shown(cohort["patients"], smallest)),
            ("  with the outcome", _shown(cohort["outcomes"], smallest)),
            ("  whose data end before the outcome's window", _shown(cohort["unobserved"], smallest)),
            *((f"  lacking {lacks} inputs", _shown(count, smallest)) for lacks, count in cohort["missing"].items()),
        ],
    )
    yield output.table("Features", ["feature", "codes", "unit", "values", "patients", "share", "units seen"], [
        (feature["name"], _codes(feature), feature["unit"] or "", _shown(feature["values"], smallest),
         _shown(feature["patients"], smallest), "" if feature["share"] is None else f"{feature['share']:.0%}",
         ", ".join(_unit(unit, smallest) for unit in feature["units"]))
        for feature in survey["features"]
    ])  # fmt: skip
    if survey["unfilled"]:
        yield unfilled_table(survey["unfilled"])
    yield output.table("Set aside so far", ["kind", "reason", "element", "entries", "what to do"], [
        (entry["kind"], entry["reason"], entry["path"], _shown(entry["entries"], smallest), entry["do"])
        for entry in survey["quarantine"]
    ])  # fmt: skip
    yield output.table("In the store", ["type", "resources", "patients", "first", "last", "median each", "most"], [
        (row["type"], _shown(row["resources"], smallest), _shown(row["patients"], smallest), row["first"], row["last"],
         row["per_patient"]["median"], row["per_patient"]["most"])
        for row in survey["holdings"]
    ])  # fmt: skip


def _codes(feature: Mapping[str, Any]) -> str:
    """Those that the port names, and how many others are read for them."""
    mapped = feature["mapped"]
    return " ".join([*feature["codes"], f"(and {len(mapped)} by code maps or below)"] if mapped else feature["codes"])


def _shown(count: int | None, smallest_cell: int) -> str:
    return f"fewer than {smallest_cell}" if count is None else f"{count:,}"


def _unit(unit: Mapping[str, Any], smallest_cell: int) -> str:
    becomes = f" ({unit['use']}{' ' + unit['becomes'] if unit['becomes'] else ''})" if unit["use"] != "as-it-is" else ""
    return f"{unit['code']} {unit['unit']}{becomes}: {_shown(unit['values'], smallest_cell)}"
