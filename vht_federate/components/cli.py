"""``vht component list | show | digest``. None of them runs the component's code."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vht_federate import output
from vht_federate.components.contract import Component, Port, Profile
from vht_federate.components.digest import ComponentFiles
from vht_federate.components.registry import find_component, installed

__all__ = ["app"]

app = typer.Typer(help="List, show and digest twin components.", no_args_is_help=True, add_completion=False)

Paths = Annotated[
    list[Path] | None, typer.Option("--path", help="A component's folder, or a folder of components; may be repeated.")
]
Chosen = Annotated[str, typer.Argument(help="Name of an installed component, or its folder.")]


def _folder(chosen: str, paths: list[Path] | None) -> Path:
    return Path(chosen) if (Path(chosen) / "component.toml").is_file() else find_component(chosen, paths or ()).folder


@app.command("list")
@output.command("component list")
def list_components(path: Paths = None) -> None:
    """Components that are installed here, with the digests a permit can name."""
    rows = []
    for name, found in installed(path or ()).items():
        rows.append(
            {
                "name": name,
                "version": found.component.version,
                "title": found.component.title,
                "profiles": sorted(found.component.profiles),
                "digest": found.digest(),
                "folder": str(found.folder),
            }
        )
    shown = [(row["name"], row["version"], ", ".join(row["profiles"]), row["digest"]) for row in rows]
    table = output.table("Components", ["name", "version", "profiles", "digest"], shown)
    output.emit("component list", {"components": rows}, table)


@app.command()
@output.command("component show")
def show(component: Chosen, path: Paths = None) -> None:
    """A component's ports with units, codes and bounds, and its profiles."""
    files = ComponentFiles.read(_folder(component, path))
    contract = files.component()
    data = contract.model_dump(mode="json") | {"digest": files.digest, "folder": str(files.folder)}
    head = f"[bold]{contract.name}[/] {contract.version}: {contract.title}\n{contract.description}\n{files.digest}"
    ports = output.table(
        "Ports", ["name", "direction", "kind", "unit", "LOINC", "bounds or categories"], map(_row, contract.ports)
    )
    profiles = output.table("Profiles", ["name", "title", "inputs", "outcome", "index"], _profile_rows(contract))
    output.emit("component show", data, head, ports, profiles)


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


def _profile_rows(contract: Component) -> list[tuple[Any, ...]]:
    return [
        (name, profile.title, ", ".join(profile.inputs), profile.outcome, _index(profile))
        for name, profile in contract.profiles.items()
    ]


def _index(profile: Profile) -> str:
    """The days before which a record's inputs lie."""
    if profile.index == "onset":
        return "first onset, or the last day recorded"
    return ", ".join(map(str, profile.landmarks))
