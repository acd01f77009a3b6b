"""Which components are installed: those that ship with this package, and folders that someone names."""

from collections.abc import Iterable
from pathlib import Path

from vht_federate.components.contract import read_component
from vht_federate.components.digest import component_digest
from vht_federate.errors import ComponentError, InputError

__all__ = ["component_folder", "folder_of_digest", "installed"]

_PACKAGED = Path(__file__).parent


def installed(paths: Iterable[Path] = ()) -> dict[str, Path]:
    """Component name -> folder, sorted by name. Each of ``paths`` is a component's folder, or a folder of them.

    A named path goes before a packaged component of the same name. Raises InputError VHT-INPUT-COMPONENT for a path
    that holds none, VHT-INPUT-COMPONENT-TWICE where two named paths hold one name.
    """
    named: dict[str, Path] = {}
    for path in paths:
        found = _components_in(path)
        if not found:
            raise InputError(f"no component in {path}", code="VHT-INPUT-COMPONENT")
        for folder in found:
            name = read_component(folder).name
            if name in named:
                raise InputError(f"component {name} was named twice", code="VHT-INPUT-COMPONENT-TWICE")
            named[name] = folder
    packaged = {read_component(folder).name: folder for folder in _components_in(_PACKAGED)}
    return dict(sorted((packaged | named).items()))


def component_folder(name: str, paths: Iterable[Path] = ()) -> Path:
    """Raises InputError VHT-INPUT-COMPONENT-UNKNOWN."""
    known = installed(paths)
    if name not in known:
        raise InputError(
            f"no component {name} is installed",
            code="VHT-INPUT-COMPONENT-UNKNOWN",
            hint=f"installed: {', '.join(known)}; name a folder with --path",
        )
    return known[name]


def folder_of_digest(digest: str, paths: Iterable[Path] = ()) -> Path:
    """The installed component with exactly these files. Raises ComponentError VHT-COMPONENT-DIGEST."""
    for folder in installed(paths).values():
        if component_digest(folder) == digest:
            return folder
    raise ComponentError(
        f"no installed component has the digest {digest[:12]}…",
        code="VHT-COMPONENT-DIGEST",
        hint="install the component's folder at this node, or correct the study; see 'vht component list'",
    )


def _components_in(path: Path) -> list[Path]:
    if (path / "component.toml").is_file():
        return [path]
    return sorted(folder.parent for folder in path.glob("*/component.toml"))
