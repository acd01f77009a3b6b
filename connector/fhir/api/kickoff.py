"""What an export is asked for, in either dialect: a GET's query, or the Parameters of a POST."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import orjson

from connector.fhir.resources import TABLES
from vht_federate.errors import InputError, RefusedError

__all__ = ["Kickoff", "parameter_time", "posted", "read_kickoff"]


@dataclass(frozen=True)
class Kickoff:
    """What an export is asked for."""

    types: tuple[str, ...]
    since: datetime | None

    def spelled(self) -> str:
        """As the query of a GET."""
        since = {"_since": self.since.isoformat()} if self.since else {}
        return urlencode({"_type": ",".join(self.types), **since})


def posted(body: bytes) -> list[tuple[str, str]]:
    """The parameters of a POST (Bulk Data 4.0): repeated, or joined by commas. Raises InputError VHT-INPUT-EXPORT."""
    try:
        sent = orjson.loads(body)
        if sent["resourceType"] != "Parameters":
            raise ValueError
        found = []
        for one in sent.get("parameter", []):
            [value] = [value for key, value in one.items() if key.startswith("value")]
            if not isinstance(one["name"], str) or not isinstance(value, str):
                raise ValueError
            found.append((one["name"], value))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("an export is asked for with a Parameters resource", code="VHT-INPUT-EXPORT") from error
    return found


def parameter_time(value: Any) -> datetime:
    """A FHIR instant, as ``_since`` takes it. Raises InputError VHT-INPUT-EXPORT."""
    try:
        moment = datetime.fromisoformat(value)
    except (ValueError, TypeError) as error:
        raise InputError("_since is an instant", code="VHT-INPUT-EXPORT", hint="2026-01-31T00:00:00Z") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def read_kickoff(parameters: Sequence[tuple[str, str]], access_types: frozenset[str]) -> Kickoff:
    """What an export is asked for. Types default to all that the token covers.

    Raises InputError VHT-INPUT-EXPORT, RefusedError VHT-REFUSED-SCOPE.
    """
    types: list[str] = []
    since = None
    for name, value in parameters:
        if name == "_type":
            types += [kind for kind in value.split(",") if kind]
        elif name == "_since":
            since = parameter_time(value)
        elif name == "_outputFormat":
            if value not in ("application/fhir+ndjson", "application/ndjson", "ndjson"):
                raise InputError("exports come as NDJSON", code="VHT-INPUT-EXPORT")
        else:
            raise InputError(
                "an export parameter is not one that this API has",
                code="VHT-INPUT-EXPORT",
                hint="_type, _since and _outputFormat are",
            )
    if not set(types) <= set(TABLES):
        raise InputError("a type is not one that this API has", code="VHT-INPUT-EXPORT", hint=", ".join(TABLES))
    if not set(types) <= access_types:
        raise RefusedError("the token does not cover that type", code="VHT-REFUSED-SCOPE")
    chosen = frozenset(types) or access_types
    return Kickoff(tuple(kind for kind in TABLES if kind in chosen), since)
