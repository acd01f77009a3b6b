"""``vht node quality``: what a study with a component would find at this node, and what it would lose."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from connector.cli.node_access import State, alone, reach, running
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
        asked = {"component": component, "profile": profile, "shareable": shareable}
        with reach(state) as client:
            data = client.get("/api/quality", params={name: one for name, one in asked.items() if one is not None})
    else:
        data = alone(state, lambda node: _alone(node, component, profile, shareable))
    tables = [made for one in data["surveys"] for made in _tables(one)]
    output.emit("node quality", data, *tables)


def _alone(node: Any, component: str | None, profile: str | None, shareable: bool) -> dict[str, Any]:
    from connector.listeners.quality_api import quality as surveyed

    return surveyed(node, component, profile, shareable=shareable)


def _tables(survey: Mapping[str, Any]) -> Iterator[output.Rows | str]:
    cohort, smallest = survey["cohort"], survey["smallest_cell"]
    name = f"{survey['component']} {survey['version']}, profile {survey['profile']}"
    yield output.table(
        f"{name}: {_told(cohort['patients'], smallest)} of {_told(survey['store_patients'], smallest)} patients",
        ["what", "patients"],
        [
            *((f"lost: {one['says']}", _told(one["patients"], smallest)) for one in survey["losses"]),
            ("in the cohort", _told(cohort["patients"], smallest)),
            ("  with the outcome", _told(cohort["outcomes"], smallest)),
            ("  whose data end before the outcome's window", _told(cohort["unobserved"], smallest)),
            *((f"  lacking {lacks} inputs", _told(count, smallest)) for lacks, count in cohort["missing"].items()),
        ],
    )
    yield output.table("Features", ["feature", "codes", "unit", "values", "patients", "share", "units seen"], [
        (one["name"], " ".join(one["codes"]), one["unit"] or "", _told(one["values"], smallest),
         _told(one["patients"], smallest), "" if one["share"] is None else f"{one['share']:.0%}",
         ", ".join(_unit(unit, smallest) for unit in one["units"]))
        for one in survey["features"]
    ])  # fmt: skip
    yield output.table("Set aside so far", ["kind", "reason", "element", "entries", "what to do"], [
        (one["kind"], one["reason"], one["path"], _told(one["entries"], smallest), one["do"])
        for one in survey["quarantine"]
    ])  # fmt: skip
    yield output.table("In the store", ["type", "resources", "patients", "first", "last", "median each", "most"], [
        (one["type"], _told(one["resources"], smallest), _told(one["patients"], smallest), one["first"], one["last"],
         one["per_patient"]["median"], one["per_patient"]["most"])
        for one in survey["holdings"]
    ])  # fmt: skip


def _told(count: int | None, smallest_cell: int) -> str:
    return f"fewer than {smallest_cell}" if count is None else f"{count:,}"


def _unit(unit: Mapping[str, Any], smallest_cell: int) -> str:
    becomes = f" ({unit['use']}{' ' + unit['becomes'] if unit['becomes'] else ''})" if unit["use"] != "as-it-is" else ""
    return f"{unit['code']} {unit['unit']}{becomes}: {_told(unit['values'], smallest_cell)}"
