"""Which components are installed: those that ship with this package, and folders that someone names."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vht_federate.components.contract import Component, read_component
from vht_federate.components.digest import component_digest
from vht_federate.errors import ComponentError, InputError

__all__ = ["Installed", "find_component", "find_digest", "installed"]

_PACKAGED = Path(__file__).parent


@dataclass(frozen=True)
class Installed:
    """A component in a folder of this machine."""

    folder: Path
    component: Component

    @property
    def name(self) -> str:
        return self.component.name

    def digest(self) -> str:
        """Computed from the files as they lie now."""
        return component_digest(self.folder)


def installed(paths: Iterable[Path] = ()) -> dict[str, Installed]:
    """By name, sorted. Each of ``paths`` is a component's folder, or a folder of them.

    A named path goes before a packaged component of the same name. Raises InputError VHT-INPUT-COMPONENT for a path
    that holds none, VHT-INPUT-COMPONENT-TWICE where two named paths hold one name.
    """
    named: dict[str, Installed] = {}
    for path in paths:
        components = _components_in(path)
        if not components:
            raise InputError(f"no component in {path}", code="VHT-INPUT-COMPONENT")
        for component in components:
            if component.name in named:
                raise InputError(f"component {component.name} was named twice", code="VHT-INPUT-COMPONENT-TWICE")
            named[component.name] = component
    packaged = {component.name: component for component in _components_in(_PACKAGED)}
    return dict(sorted((packaged | named).items()))


def find_component(name: str, paths: Iterable[Path] = ()) -> Installed:
    """Raises InputError VHT-INPUT-COMPONENT-UNKNOWN."""
    known = installed(paths)
    if name not in known:
        raise InputError(
            f"no component {name} is installed",
            code="VHT-INPUT-COMPONENT-UNKNOWN",
            hint=f"installed: {', '.join(known)}; name a folder with --path",
        )
    return known[name]


def find_digest(digest: str, paths: Iterable[Path] = ()) -> Installed:
    """The installed component with exactly these files. Raises ComponentError VHT-COMPONENT-DIGEST."""
    for component in installed(paths).values():
        if component.digest() == digest:
            return component
    raise ComponentError(
        f"no installed component has the digest {digest[:12]}…",
        code="VHT-COMPONENT-DIGEST",
        hint="install the component's folder at this node, or correct the study; see 'vht component list'",
    )


def _components_in(path: Path) -> list[Installed]:
    folders = [path] if (path / "component.toml").is_file() else sorted(f.parent for f in path.glob("*/component.toml"))
    return [Installed(folder, read_component(folder)) for folder in folders]
