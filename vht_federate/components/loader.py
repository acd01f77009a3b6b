"""Loads a component's code from bytes that were digested, as a package of its own.

The package's name carries the digest, ``sys.path`` is not touched, no bytecode is written or read, and modules of the
component reach each other by relative imports only. Whoever calls this runs the component's code.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vht_federate.components.digest import ComponentFiles
from vht_federate.errors import ComponentError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_model", "load_entry", "load_model"]


class _Memory(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds the modules of one component in its bytes."""

    def __init__(self, package: str, files: ComponentFiles) -> None:
        self.package = package
        self.files = files

    def _file(self, fullname: str) -> str:
        inner = fullname.removeprefix(self.package).lstrip(".").replace(".", "/")
        return f"{inner}/__init__.py" if self.is_package(fullname) and inner else f"{inner or '__init__'}.py"

    def is_package(self, fullname: str) -> bool:
        inner = fullname.removeprefix(self.package).lstrip(".").replace(".", "/")
        return not inner or f"{inner}/__init__.py" in self.files.files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname != self.package and not fullname.startswith(self.package + "."):
            return None
        if fullname != self.package and self._file(fullname) not in self.files.files:
            return None
        origin = str(self.files.folder / self._file(fullname))
        return importlib.machinery.ModuleSpec(fullname, self, origin=origin, is_package=self.is_package(fullname))

    def get_source(self, fullname: str) -> str:
        return self.files.files.get(self._file(fullname), b"").decode()

    def get_code(self, fullname: str) -> Any:
        return compile(self.get_source(fullname), str(self.files.folder / self._file(fullname)), "exec")


def load_entry(files: ComponentFiles) -> Any:
    """The object that ``entry`` ("module:name") names. Raises ComponentError VHT-COMPONENT-ENTRY."""
    module_name, _, attribute = files.component().entry.partition(":")
    package = f"vht_component_{files.digest}"
    if not any(isinstance(finder, _Memory) and finder.package == package for finder in sys.meta_path):
        sys.meta_path.append(_Memory(package, files))
    try:
        return getattr(importlib.import_module(f"{package}.{module_name}"), attribute)
    except Exception as error:
        raise ComponentError(
            f"the code of component {files.folder.name} does not load ({type(error).__name__})",
            code="VHT-COMPONENT-ENTRY",
            hint=f"entry {module_name}:{attribute} must import, with relative imports between the component's files",
        ) from error


def build_model(files: ComponentFiles, profile: str) -> "nn.Module":
    """``entry(component, profile)``: a torch module from a batch of records to logits [n]. Loads torch.

    The batch is float32 [n, inputs], or, for repeated and sequence layouts, [n, 3, steps, inputs]: values, mask, times
    (``CohortArrays.model_inputs``).

    Raises ComponentError VHT-COMPONENT-ENTRY where the entry fails or returns something else.
    """
    from torch import nn

    component = files.component()
    component.profile(profile)
    build = load_entry(files)
    try:
        model = build(component, profile)
    except Exception as error:
        raise ComponentError(
            f"component {component.name} cannot build profile {profile} ({type(error).__name__})",
            code="VHT-COMPONENT-ENTRY",
        ) from error
    if not isinstance(model, nn.Module):
        raise ComponentError(f"component {component.name} builds no torch module", code="VHT-COMPONENT-ENTRY")
    return model


def load_model(folder: Path, profile: str) -> "nn.Module":
    """``build_model`` from the files that lie in ``folder`` now."""
    return build_model(ComponentFiles.read(folder), profile)
