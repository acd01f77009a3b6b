"""``vht node codes``: which codes, units and bounds the node reads each clinical feature by; what in the data means
nothing to it."""

from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from typer.core import TyperGroup

from connector.cli.node_access import State
from connector.cli.output_tables import unfilled_table
from connector.settings import NodeFiles, NodeSettings
from vht_federate import output
from vht_federate.errors import InputError

if TYPE_CHECKING:
    from connector.fhir.codes import Feature

__all__ = ["app"]


class _ByFeature(TyperGroup):
    """A first word that is no sub-command is a feature's name: ``vht node codes hba1c``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])


app = typer.Typer(
    add_completion=False, cls=_ByFeature, help="Which codes the node reads, and which in its data it does not."
)


@app.callback(invoke_without_command=True)
def codes(context: typer.Context) -> None:
    """List the code maps: codes and units of each clinical feature, and where they come from."""
    if context.invoked_subcommand is None:
        _list()


@output.command("node codes")
def _list() -> None:
    from connector.fhir.codes import features

    listed = [_facts(known_feature) for known_feature in features().values()]
    columns = ["feature", "kind", "codes", "unit", "other units"]
    rows = [
        (entry["name"], entry["kind"], " ".join(entry["codes"]), entry["unit"] or "", " ".join(entry["units"]))
        for entry in listed
    ]
    output.emit("node codes", {"features": listed}, output.table("Code maps", columns, rows))


@app.command("show")
@output.command("node codes")
def show(feature: Annotated[str, typer.Argument(help="One feature.")]) -> None:
    """Show one feature with its unit conversions and sources; 'vht node codes FEATURE' does the same."""
    from connector.fhir.codes import features

    known_features = features()
    if feature not in known_features:
        raise InputError(f"no feature {feature}", code="VHT-INPUT-FEATURE", hint="vht node codes lists them")
    facts = _facts(known_features[feature])
    output.emit("node codes", facts, output.table(facts["title"], ["what", ""], _fact_rows(facts)))


@app.command("check")
@output.command("node codes check")
def check(state: State) -> None:
    """Say which codes in the node's data mean nothing to any port, feature or code map, and which ports stay empty."""
    from connector.fhir.codes import read_code_maps
    from connector.quality.code_coverage import code_coverage
    from vht_federate.components.registry import installed

    settings, files = NodeSettings.read(state), NodeFiles(state)
    maps = read_code_maps(files.code_maps)
    components = [entry.component for entry in installed(settings.component_paths).values()]
    data = code_coverage(files.fhir, components, maps).to_dict(settings.smallest_cell)
    columns = ["type", "read by a port", "known to a map", "mean nothing"]
    types = [(row["type"], row["read"], row["known"], row["unknown"]) for row in data["types"]]
    unknown = [
        (row["type"], row["system"] or "none", row["code"], f"{row['resources']:,}", f"{row['patients']:,}")
        for row in data["unknown"]
    ]
    few = f"{settings.smallest_cell:,}"
    rare = [(row["type"], row["system"] or "none", row["codes"]) for row in data["rare"]]
    tables = [
        output.table("Different codes in the data", columns, types),
        output.table("Mean nothing here", ["type", "system", "code", "resources", "patients"], unknown),
        output.table(f"And of fewer than {few} patients each", ["type", "system", "codes"], rare),
        unfilled_table(data["unfilled"]),
        output.table("By the code maps", ["map", "sha256"], data["code_maps"].items()),
    ]
    output.emit("node codes check", data, *tables)


def _facts(feature: "Feature") -> dict[str, Any]:
    from connector.fhir.codes import Measure

    facts = feature.model_dump(mode="json")
    facts["codes"] = [f"{system}|{code}" for system, code in feature.codes]
    measure = Measure.of_feature(feature)
    usual = dict.fromkeys((*feature.units, *feature.read_as))
    facts["conversions"] = {
        unit: {"scale": turn.way.scale, "offset": turn.way.offset} for unit, turn in measure.turns(usual).items()
    }
    return facts


def _fact_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("code", code) for code in facts["codes"]]
    if facts["unit"]:
        rows += [("unit", facts["unit"]), ("plausible", "{} to {}".format(*facts["bounds"]))]
    for unit, way in facts["conversions"].items():
        plus = f" + {way['offset']:g}" if way["offset"] else ""
        read_as = f", read as {facts['read_as'][unit]}" if unit in facts["read_as"] else ""
        rows.append((f"from {unit}", f"× {way['scale']:.6g}{plus}{read_as}"))
    rows += [(f"answer: {name}", " ".join(values)) for name, values in facts["answers"].items()]
    return rows + [("source", source) for source in facts["source"]]
