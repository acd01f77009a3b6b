"""The page of component ports: where each reads from FHIR, in which units, within which bounds."""

from collections.abc import Iterator

from connector.fhir.codes import Measure, feature_of
from vht_federate.components.contract import Component, Port, Profile, Source
from vht_federate.components.registry import installed
from vht_federate.domain.units import Affine

__all__ = ["ports_page"]

INTRO = """# Ports of the components

A port is one typed column: what a component reads from FHIR, in which unit, within which public bounds. A permit lists
ports by name. A value is turned into the port's own unit from those listed here and from any other UCUM unit of the
same meaning; one outside the bounds is clamped to them inside the model. How values are chosen is in [FHIR](fhir.md).
"""


def ports_page(note: str) -> str:
    """``note`` says who writes the page."""
    return "\n".join([note + INTRO, *(_component(entry.component) for entry in installed(()).values())])


def _component(component: Component) -> str:
    rows = [
        f"| `{port.name}` | {port.title} | {_kind(port)} | {_source(port.source, port)} | {_units(port)} |"
        for port in component.ports
    ]
    head = "| port | meaning | kind | read from | accepted units |\n|---|---|---|---|---|"
    profiles = [
        f"- `{name}`: {profile.title}. Reads {', '.join(f'`{port_name}`' for port_name in profile.inputs)}; predicts "
        f"`{profile.outcome}`{_when(profile)}."
        for name, profile in component.profiles.items()
    ]
    title = f"## {component.name} {component.version}: {component.title}\n\n{component.description}\n"
    return "\n".join([title, "Profiles:\n", *profiles, "", head, *rows]) + "\n"


def _when(profile: Profile) -> str:
    if profile.index == "onset":
        return ". Index: the first onset, or without one the last day recorded"
    within = f" within {profile.horizon_years} years after the landmark" if profile.horizon_years else ", ever"
    return f"{within}. Landmarks: {', '.join(map(str, profile.landmarks))}"


def _kind(port: Port) -> str:
    if port.bounds:
        return f"{port.bounds[0]:g} to {port.bounds[1]:g} {port.unit or ''}".strip()
    return f"one of {', '.join(f'`{category}`' for category in port.categories)}" if port.categories else port.kind


def _source(source: Source, port: Port) -> str:
    codes = ", ".join(f"`{code}`" for code in source.codes)
    match source.type:
        case "age":
            return "Patient.birthDate"
        case "sex":
            return f"Patient.gender, `{source.equals}` is true"
        case "condition":
            return f"Condition.code of `{source.system}`: {codes}"
        case "medication":
            return f"MedicationRequest of `{source.system}`: {codes}"
        case _:
            return f"Observation.code of `{source.code_system}`: {codes}{_answers(source, port)}"


def _answers(source: Source, port: Port) -> str:
    if source.type != "observation-code":
        return "; valueBoolean" if source.type == "observation-boolean" else ""
    if port.kind == "category":
        return f"; value of `{source.system}`"
    truths, negatives = (", ".join(f"`{value}`" for value in values) for values in (source.values, source.negatives))
    return f"; value of `{source.system}`: true {truths}, false {negatives}"


def _units(port: Port) -> str:
    if port.kind != "quantity" or port.unit is None or port.source.type != "observation":
        return ""
    feature = feature_of(port.source.code_system, port.source.codes)
    usual = (feature.unit or "", *feature.units, *feature.read_as) if feature else ()
    turns = Measure.of_port(port).turns(dict.fromkeys((port.unit, *usual)))
    return "<br>".join(f"`{name}`{_turned(turn.way)}" for name, turn in turns.items())


def _turned(to: Affine) -> str:
    parts: Iterator[str] = (
        part
        for part in (f" × {to.scale:.6g}" if to.scale != 1 else "", f" + {to.offset:g}" if to.offset else "")
        if part
    )
    return "".join(parts)
