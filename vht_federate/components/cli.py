"""``vht component list | show | views | digest``. None of them runs the component's code."""

import json
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from vht_federate import output
from vht_federate.components.contract import Port, Profile
from vht_federate.components.digest import ComponentFiles
from vht_federate.components.registry import find_component, installed
from vht_federate.domain.figures import Figure, figures_of_manifest
from vht_federate.errors import ComponentError
from vht_federate.signing.canonical import digest_of

__all__ = ["app"]

COMPILERS = "vht.component_views"
app = typer.Typer(help="List, show and digest twin components.", no_args_is_help=True, add_completion=False)

Paths = Annotated[
    list[Path] | None, typer.Option("--path", help="A component's folder, or a folder of components; may be repeated.")
]
Chosen = Annotated[str, typer.Argument(help="Name of an installed component, its folder, or that of a release.")]


def _folder(chosen: str, paths: list[Path] | None) -> Path:
    if (Path(chosen) / "code" / "component.toml").is_file():  # a release carries its component's files
        return Path(chosen) / "code"
    return Path(chosen) if (Path(chosen) / "component.toml").is_file() else find_component(chosen, paths or ()).folder


@app.command("list")
@output.command("component list")
def list_components(path: Paths = None) -> None:
    """Components that are installed here, with the digests a permit can name."""
    rows = []
    for name, entry in installed(path or ()).items():
        rows.append(
            {
                "name": name,
                "version": entry.component.version,
                "title": entry.component.title,
                "profiles": sorted(entry.component.profiles),
                "digest": entry.digest(),
                "folder": str(entry.folder),
            }
        )
    shown = [(row["name"], row["version"], ", ".join(row["profiles"]), row["digest"]) for row in rows]
    table = output.table("Components", ["name", "version", "profiles", "digest"], shown)
    output.emit("component list", {"components": rows}, table)


@app.command()
@output.command("component show")
def show(component: Chosen, path: Paths = None) -> None:
    """A component's ports with units, codes and bounds, and its profiles; a cohort's view must compile."""
    files = ComponentFiles.read(_folder(component, path))
    contract = files.component()
    for name, profile in contract.profiles.items():
        if profile.cohort is not None:
            _views_of(files, name)
    data = contract.model_dump(mode="json") | {"digest": files.digest, "folder": str(files.folder)}
    figures = _released_figures(Path(component))
    if figures is not None:
        data["evaluation"] = {name: figure.to_dict() for name, figure in figures.items()}
    head = f"[bold]{contract.name}[/] {contract.version}: {contract.title}\n{contract.description}\n{files.digest}"
    ports = output.table(
        "Ports", ["name", "direction", "kind", "unit", "LOINC", "bounds or categories"], map(_row, contract.ports)
    )
    profiles = [
        output.table(f"Profile {name}: {profile.title}", ["what", ""], _profile_rows(profile))
        for name, profile in contract.profiles.items()
    ]
    released = [] if figures is None else [_figures_table(figures.values())]
    output.emit("component show", data, head, ports, *profiles, *released)


def _released_figures(folder: Path) -> dict[str, Figure] | None:
    """What the manifest of a released component says of its evaluation; None for a folder that is no release."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        return figures_of_manifest(manifest) if manifest.get("kind") == "component" else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _figures_table(figures: Iterable[Figure]) -> output.Rows:
    rows: list[tuple[str, str | None]] = [(figure.title, figure.text) for figure in figures]
    rows = rows or [("not evaluated in its study", None)]
    title = "Released figures, as the manifest says ('vht audit verify' checks the bundle)"
    return output.table(title, ["figure", "value, with 95 % confidence over its noise"], rows)


@app.command()
@output.command("component views")
def views(
    component: Chosen,
    profile: Annotated[str, typer.Argument(help="One of the component's profiles.")],
    path: Paths = None,
) -> None:
    """The SQL on FHIR views that say what a profile reads, with the digest of a cohort to which no code map added."""
    files = ComponentFiles.read(_folder(component, path))
    view_definitions = _views_of(files, profile)
    data = {
        "name": files.component().name,
        "digest": files.digest,
        "profile": profile,
        "view_hash": digest_of(list(view_definitions.values())),
        "views": view_definitions,
    }
    shown = json.dumps(list(view_definitions.values()), indent=2, ensure_ascii=False)
    from rich.text import Text

    output.emit("component views", data, Text(shown), data["view_hash"])


@app.command()
@output.command("component digest")
def digest(component: Chosen, path: Paths = None) -> None:
    """The sha256 over a component's files as they lie on disk."""
    files = ComponentFiles.read(_folder(component, path))
    data = {
        "name": files.component().name,
        "version": files.component().version,
        "digest": files.digest,
        "files": sorted(files.files),
        "folder": str(files.folder),
    }
    output.emit("component digest", data, files.digest)


def _row(port: Port) -> tuple[Any, ...]:
    limits = f"{port.bounds[0]:g} to {port.bounds[1]:g}" if port.bounds else ", ".join(port.categories) or None
    return port.name, port.direction, port.kind, port.unit, port.loinc, limits


def _profile_rows(profile: Profile) -> list[tuple[str, str]]:
    return [
        ("inputs", ", ".join(profile.inputs)),
        ("outcome", profile.outcome),
        ("index", _index(profile)),
        ("records", _records(profile)),
    ]


def _index(profile: Profile) -> str:
    """The days before which a record's inputs lie."""
    if profile.index == "onset":
        return "first onset, or the last day recorded"
    return ", ".join(map(str, profile.landmarks))


def _records(profile: Profile) -> str:
    """What a record holds, and of whom."""
    windows = f" of {profile.window_days} days" if profile.window_days else ""
    steps = "" if profile.layout == "tabular" else f", {profile.steps} steps{windows}"
    chosen = f", of the patients in {profile.cohort}" if profile.cohort else ""
    return f"{profile.layout}{steps}{chosen}"


def _views_of(files: ComponentFiles, profile: str) -> dict[str, Any]:
    """The profile's views by name, checked by the connector. Raises ViewError; ComponentError where there is none."""
    points = entry_points(group=COMPILERS)
    if not points:
        raise ComponentError("views are checked by the connector, which is not installed", code="VHT-COMPONENT-VIEWS")
    view_definitions: dict[str, Any] = next(iter(points)).load()(files, profile)
    return view_definitions
