"""The jobs that installed packages offer to enclaves (entry points ``vht.enclave_jobs``), and where each comes from.

A name belongs to one package. Where a second one registers it, no enclave starts: nobody could say which code would see
the patients.
"""

import hashlib
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from vht_federate.domain.job_origin import JobOrigin
from vht_federate.errors import ComponentError

__all__ = ["GROUP", "origin_of", "package_of", "registered_jobs"]

GROUP = "vht.enclave_jobs"


def registered_jobs(names: Collection[str]) -> dict[str, EntryPoint]:
    """The entry points of ``names``; nothing is imported.

    Raises ComponentError VHT-COMPONENT-JOB for a name that no package registers, VHT-COMPONENT-JOB-TWICE where any name
    is registered more than once.
    """
    registered: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        first = registered.setdefault(point.name, point)
        if first is not point:
            raise ComponentError(
                f"two installed packages register the job {point.name}: {_distribution(first)}, {_distribution(point)}",
                code="VHT-COMPONENT-JOB-TWICE",
                hint="uninstall one of them: no enclave starts while it is open which code a job is",
            )
    missing = sorted(set(names) - set(registered))
    if missing:
        raise ComponentError(f"this node has no job {', '.join(missing)}", code="VHT-COMPONENT-JOB")
    return {name: registered[name] for name in sorted(names)}


def package_of(point: EntryPoint) -> str:
    """The top-level package that holds the job's code."""
    return point.module.partition(".")[0]


def origin_of(point: EntryPoint) -> JobOrigin:
    """Raises ComponentError VHT-COMPONENT-JOB where the package that is named is not there."""
    distribution = point.dist
    if distribution is None:
        raise ComponentError(f"nobody knows which package registers the job {point.name}", code="VHT-COMPONENT-JOB")
    return JobOrigin(
        distribution=distribution.name,
        version=distribution.version,
        entry=point.value,
        digest=_digest(package_of(point)),
    )


def _digest(package: str) -> str:
    spec = find_spec(package)
    if spec is None:
        raise ComponentError(f"the package {package} of a job is not installed", code="VHT-COMPONENT-JOB")
    whole = hashlib.sha256()
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    files = {
        path.relative_to(place).as_posix(): path for place in places for path in place.rglob("*") if path.is_file()
    }
    if not places and spec.origin:
        files[Path(spec.origin).name] = Path(spec.origin)
    for name, path in sorted(files.items()):
        if path.suffix != ".pyc":
            whole.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "one without a name"
