"""Sources installed in a node's directory: each a folder of its own with all it needs.

sources/NAME/source.toml    as it was given, its paths set to what lies beside it
sources/NAME/source.key     a copy of its private key, mode 0600; ca.pem, of its certificate authority
sources/NAME/standing.json  what became of its pulls
sources/NAME/lock, last.json, run/   of the pull (``connector.fhir.sources.pull``)
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from connector.fhir.sources import SourceSettings, pulling
from connector.fhir.sources.smart_auth import BackendKey
from connector.pulls.pull_history import PullStatus
from vht_federate.errors import InputError, NotFoundError
from vht_federate.files import replace_file

__all__ = ["Source", "Sources"]


@dataclass(frozen=True)
class Source:
    """One installed source in its folder ``home``."""

    home: Path

    @property
    def name(self) -> str:
        return self.home.name

    @property
    def settings(self) -> SourceSettings:
        """Raises InputError VHT-INPUT-SOURCE."""
        return SourceSettings.read(self.home / "source.toml")

    @property
    def standing(self) -> PullStatus:
        return PullStatus.read(self.home / "standing.json")

    def note(self, standing: PullStatus) -> None:
        replace_file(self.home / "standing.json", standing.model_dump_json().encode())

    def described(self, phase: str | None = None) -> dict[str, Any]:
        """For people and their programs. ``phase``: of the pull that runs, if one does."""
        standing = self.standing
        summary = {"name": self.name, "running": phase is not None, **standing.described()}
        try:
            settings = self.settings
        except InputError as error:
            return {**summary, "state": "unusable", "error": {"code": error.code, "message": error.message}}
        resting = "failing" if standing.failures else "waiting" if settings.every else "on request"
        return {
            **summary,
            "state": phase or resting,
            "base_url": settings.base_url,
            "mode": settings.mode,
            "level": settings.level if settings.mode == "export" else None,
            "types": list(settings.types),
            "every": settings.every,
        }


class Sources:
    """The sources of one node, in ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def all(self) -> list[Source]:
        """In order of name."""
        return [Source(path.parent) for path in sorted(self._root.glob("*/source.toml"))]

    def get(self, name: str) -> Source:
        """Raises NotFoundError VHT-INPUT-NOT-FOUND."""
        for source in self.all():
            if source.name == name:
                return source
        raise NotFoundError("no such source is installed", hint="'vht node sources' lists them")

    def described(self) -> list[dict[str, Any]]:
        return [source.described() for source in self.all()]

    def add(self, file: Path) -> Source:
        """Install ``file``, with the key and the certificates that it names; again: replaces what was installed.

        Raises InputError VHT-INPUT-SOURCE, VHT-INPUT-SOURCE-KEY; UnavailableError VHT-UNAVAILABLE-SOURCE-BUSY.
        """
        settings = SourceSettings.read(file)
        copies: dict[str, bytes] = {}
        document = settings.model_dump(mode="json", exclude_none=True, exclude_unset=True)
        document["schema_version"] = settings.schema_version
        if settings.authorization:
            BackendKey.read(settings.authorization.key, settings.authorization.kid)
            copies["source.key"] = settings.authorization.key.read_bytes()
            document["authorization"]["key"] = "source.key"
        if settings.ca:
            copies["ca.pem"] = _read(settings.ca)
            document["ca"] = "ca.pem"
        source = Source(self._root / settings.name)
        with pulling(source.home):
            for name, content in copies.items():
                replace_file(source.home / name, content)
            replace_file(source.home / "source.toml", tomli_w.dumps(document).encode())
            source.note(source.standing.model_copy(update={"next_at": None}))  # the interval may be another
        return source

    def remove(self, name: str) -> None:
        """Forget a source and all that is known of its pulls; what was taken in stays. Raises as ``get``, and BUSY."""
        source = self.get(name)
        with pulling(source.home):
            (source.home / "source.toml").unlink()
            shutil.rmtree(source.home, ignore_errors=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise InputError("the source's ca cannot be read", code="VHT-INPUT-SOURCE") from None
