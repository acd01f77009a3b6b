"""A component's files as they lie on disk, read once, and the digest over them.

What was digested is what runs: the loader takes code from the bytes read here and never goes back to the folder, so
that a file changed a moment later cannot slip in. Bytecode (``__pycache__``, ``*.pyc``) is neither covered nor used.

A file that component.toml borrows is read from the folder where it lies there, as in a released package, and else from
the files that ship for all components. Its bytes are covered either way, so both have one digest, and another version
of the borrowed file is another component.
"""

import hashlib
import re
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vht_federate.components.contract import Component, parse_component
from vht_federate.errors import ComponentError, InputError, ViewError
from vht_federate.signing.strict_json import read_json

__all__ = ["ComponentFiles", "component_digest"]

_MAXIMUM_BYTES = 64 << 20
_LARGEST_VIEW = 256 << 10
_SHARED = Path(__file__).parent / "shared"
_BORROWED = re.compile(r"[a-z_]+\.py")


@dataclass(frozen=True)
class ComponentFiles:
    """All files of one component: relative POSIX path -> bytes."""

    folder: Path
    files: dict[str, bytes] = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> "ComponentFiles":
        """Read every file of ``folder``, and those that it borrows.

        Raises ComponentError VHT-COMPONENT-FILES for a symbolic link, a special file, more than 64 MiB, or a borrowed
        file that does not exist, InputError VHT-INPUT-COMPONENT where there is no component.toml.
        """
        if not (folder / "component.toml").is_file():
            raise InputError(f"{folder.name} holds no component.toml", code="VHT-INPUT-COMPONENT")
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in _own_files(folder)}
        return cls(folder, files | _borrowed_files(folder.name, files))

    @property
    def digest(self) -> str:
        """sha256 over the files sorted by path, each as ``length path length bytes`` (lengths 8 bytes, big-endian)."""
        state = hashlib.sha256(b"vht-component-1\n")
        for name in sorted(self.files):
            for part in (name.encode(), self.files[name]):
                state.update(len(part).to_bytes(8, "big"))
                state.update(part)
        return state.hexdigest()

    def component(self) -> Component:
        """The contract in these files. Raises InputError VHT-INPUT-COMPONENT."""
        content = self.files.get("component.toml")
        if content is None:
            raise InputError(f"{self.folder.name} is not a component", code="VHT-INPUT-COMPONENT")
        return parse_component(content, self.folder.name)

    def cohort_view(self, profile: str) -> dict[str, Any] | None:
        """The ViewDefinition of the profile's inclusion criteria, not yet checked; None where it has none.

        Raises ViewError VHT-VIEW-COHORT for a file that is missing, too long, or no JSON object.
        """
        name = self.component().profile(profile).cohort
        if name is None:
            return None
        content = self.files.get(name, b"")
        try:
            view = read_json(content) if len(content) <= _LARGEST_VIEW else None
        except (ValueError, RecursionError):
            view = None
        if not isinstance(view, dict):
            raise ViewError(
                f"profile {profile} of component {self.folder.name} has no view of its cohort in {name}",
                code="VHT-VIEW-COHORT",
                hint=f"a JSON object of at most {_LARGEST_VIEW} bytes, in the component's folder",
            )
        return view

    def expect(self, digest: str) -> None:
        """Raises ComponentError VHT-COMPONENT-DIGEST unless these files have ``digest``."""
        if self.digest != digest:
            raise ComponentError(
                f"the files of component {self.folder.name} are not the approved ones: digest {self.digest[:12]}… "
                f"instead of {digest[:12]}…",
                code="VHT-COMPONENT-DIGEST",
                hint="'vht component digest' prints what lies on disk; the permit and the operator approve a digest",
            )


def _own_files(folder: Path) -> list[Path]:
    """The files in ``folder`` that the digest covers, sorted."""
    paths: list[Path] = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if "__pycache__" in path.relative_to(folder).parts or path.suffix == ".pyc" or stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            raise ComponentError(
                f"component {folder.name}: {path.relative_to(folder)} is a link or a special file",
                code="VHT-COMPONENT-FILES",
                hint="a component is made of plain files that lie in its folder",
            )
        paths.append(path)
    if sum(path.lstat().st_size for path in paths) > _MAXIMUM_BYTES:
        raise ComponentError(f"component {folder.name} is larger than 64 MiB", code="VHT-COMPONENT-FILES")
    return paths


def _borrowed_files(name: str, own: dict[str, bytes]) -> dict[str, bytes]:
    """What component.toml borrows and the folder does not hold itself."""
    try:
        wanted = tomllib.loads(own["component.toml"].decode()).get("borrows", ())
    except ValueError:
        return {}  # no contract: ``component`` says so
    borrowed = {}
    for file in [file for file in wanted if file not in own] if type(wanted) is list else ():
        path = _SHARED / file if type(file) is str and _BORROWED.fullmatch(file) else None
        if path is None or not path.is_file():
            raise ComponentError(
                f"component {name} borrows a file that does not ship with this version",
                code="VHT-COMPONENT-FILES",
                hint="install the version of vht-federate that the component was made for",
            )
        borrowed[file] = path.read_bytes()
    return borrowed


def component_digest(folder: Path) -> str:
    """The digest of the component in ``folder``."""
    return ComponentFiles.read(folder).digest
