"""What an enclave may read beside its visit: the interpreter, installed packages, its component, shared libraries.

All of it is code or a fact of the machine; nothing of it comes from a patient. A folder that holds the node's state is
no runtime: with such an installation no view is possible, and the enclave is refused.
"""

import os
import sys
import sysconfig
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from connector.enclave.file_view import FileView
from vht_federate.errors import RefusedError

__all__ = ["enclave_view"]

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")
_FACTS = (
    "/etc/ld.so.cache", "/etc/localtime", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems",
    "/proc/sys/kernel", "/proc/sys/vm", "/sys/devices/system/cpu", "/sys/devices/system/node",
    "/sys/kernel/mm/transparent_hugepage", "/dev/urandom", "/dev/random", "/dev/zero",
)  # fmt: skip
_GPU_FACTS = ("/proc/driver/nvidia", "/proc/driver/nvidia-uvm", "/proc/devices", "/sys/bus/pci", "/sys/devices")
_GPU_DEVICES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps", "nvidia[0-9]*")
_PACKAGES = ("connector", "vht_federate")


def enclave_view(folder: Path, component: Path, *, closed: Path, packages: Iterable[str] = ()) -> FileView:
    """The view of the enclave that writes in ``folder``: its runtime, ``component``, and what the machine's GPUs need.

    ``packages``: top-level packages of the jobs that it runs. Raises RefusedError VHT-REFUSED-LAYOUT where ``closed``,
    the node's state, lies in a folder that an enclave reads.
    """
    devices = tuple(path for pattern in _GPU_DEVICES for path in sorted(Path("/dev").glob(pattern)))
    facts = (*_FACTS, f"/proc/{os.getpid()}", *(_GPU_FACTS if devices else ()))
    runtime = [*_interpreter(), *_of_packages((*_PACKAGES, *packages)), *map(Path, _LIBRARIES), component]
    state = closed.resolve()
    for path in runtime:
        if state.is_relative_to(path.resolve()):
            raise RefusedError(
                f"the node's state lies in {path}, which every enclave reads",
                code="VHT-REFUSED-LAYOUT",
                hint="move the state directory out of the folders of Python, its packages and the system's libraries",
            )
    return FileView(
        read=(*runtime, *map(Path, facts)), write=(folder,), use=(Path("/dev/null"), *devices), has_gpu=bool(devices)
    )


def _interpreter() -> list[Path]:
    """Standard library and installed packages: what ``sys.path`` names, and the libraries that the loader was told."""
    named = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    loader = [entry for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    own = [str(Path(prefix) / "lib") for prefix in {sys.prefix, sys.base_prefix} - {"/", "/usr", "/usr/local"}]
    return [
        Path(entry) for entry in dict.fromkeys((*named, *sys.path, *loader, *own)) if entry and Path(entry).exists()
    ]


def _of_packages(names: Iterable[str]) -> list[Path]:
    """Folders of packages that are installed from a checkout: they need not lie on ``sys.path``."""
    specs = [find_spec(name) for name in dict.fromkeys(names)]
    return [Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ()]
