"""The components that this node's operator installed, by digest."""

from pathlib import Path

from vht_federate.components.contract import Component, read_component
from vht_federate.components.registry import find_digest
from vht_federate.domain.permit import Permit
from vht_federate.errors import ComponentError

__all__ = ["InstalledComponents"]


class InstalledComponents:
    """Components that ship with this installation, and those in ``component_paths`` of node.toml."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._paths = paths

    def folder(self, digest: str) -> Path:
        """Where the component lies. Raises ComponentError VHT-COMPONENT-NOT-INSTALLED or VHT-COMPONENT-DIGEST."""
        return find_digest(digest, self._paths).folder

    def allowed_by(self, permit: Permit) -> list[Component]:
        """Those of the permit that lie here. Raises ComponentError VHT-COMPONENT-NOT-INSTALLED where none does."""
        allowed = []
        for digest in permit.component_digests:
            try:
                allowed.append(read_component(self.folder(digest)))
            except ComponentError:
                continue
        if not allowed:
            raise ComponentError(
                "no component of the permit is installed here, so nobody can tell what its columns mean",
                code="VHT-COMPONENT-NOT-INSTALLED",
            )
        return allowed
