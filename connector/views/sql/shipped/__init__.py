"""Views that come with the connector, by name: ``shipped("observation_codings")``."""

from pathlib import Path
from typing import Any

import orjson

from vht_federate.errors import ViewError

__all__ = ["names", "shipped"]

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def shipped(name: str) -> dict[str, Any]:
    """The ViewDefinition of that name. Raises: ViewError VHT-VIEW-UNKNOWN."""
    if name not in names():
        raise ViewError(
            f"no shipped view '{name[:40]}'", code="VHT-VIEW-UNKNOWN", hint=f"there are: {', '.join(names())}"
        )
    view: dict[str, Any] = orjson.loads((_FOLDER / f"{name}.json").read_bytes())
    return view
