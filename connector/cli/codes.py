"""``vht node codes``: which codes, units and bounds the node reads each clinical feature by."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vht_federate import output
from vht_federate.errors import InputError

if TYPE_CHECKING:
    from connector.fhir.codes import Feature

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command("codes")
@output.command("node codes")
def codes(
    feature: Annotated[str | None, typer.Argument(help="One feature, with its unit conversions and sources.")] = None,
) -> None:
    """List the code maps: codes and units of each clinical feature, and where they come from."""
    from connector.fhir.codes import features

    known_features = features()
    if feature is None:
        listed = [_facts(known_feature) for known_feature in known_features.values()]
        columns = ["feature", "kind", "codes", "unit", "other units"]
        rows = [
            (entry["name"], entry["kind"], " ".join(entry["codes"]), entry["unit"] or "", " ".join(entry["units"]))
            for entry in listed
        ]
        output.emit("node codes", {"features": listed}, output.table("Code maps", columns, rows))
        return
    if feature not in known_features:
        raise InputError(f"no feature {feature}", code="VHT-INPUT-FEATURE", hint="vht node codes lists them")
    facts = _facts(known_features[feature])
    output.emit("node codes", facts, output.table(facts["title"], ["what", ""], _fact_rows(facts)))


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
