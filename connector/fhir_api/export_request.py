"""What an export is asked for, in either dialect: a GET's query, or the Parameters of a POST."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import orjson

from connector.fhir.resources import TABLES
from vht_federate.errors import InputError, RefusedError

__all__ = ["Kickoff", "posted", "read_kickoff", "since_refused"]


@dataclass(frozen=True)
class Kickoff:
    """What an export is asked for."""

    types: tuple[str, ...]

    def spelled(self) -> str:
        """As the query of a GET."""
        return urlencode({"_type": ",".join(self.types)})


def posted(body: bytes) -> list[tuple[str, str]]:
    """The parameters of a POST (Bulk Data 4.0): repeated, or joined by commas. Raises InputError VHT-INPUT-EXPORT."""
    try:
        resource = orjson.loads(body)
        if resource["resourceType"] != "Parameters":
            raise ValueError
        parameters = []
        for parameter in resource.get("parameter", []):
            [value] = [value for key, value in parameter.items() if key.startswith("value")]
            if not isinstance(parameter["name"], str) or not isinstance(value, str):
                raise ValueError
            parameters.append((parameter["name"], value))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("an export is asked for with a Parameters resource", code="VHT-INPUT-EXPORT") from error
    return parameters


def since_refused() -> InputError:
    """``_since`` would sort resources by the day they came in, which is near their true dates."""
    return InputError(
        "_since is not supported: when data were taken in is near their true dates, which are not told",
        code="VHT-INPUT-SINCE",
        hint="ask without it",
    )


def read_kickoff(parameters: Sequence[tuple[str, str]], access_types: frozenset[str]) -> Kickoff:
    """What an export is asked for. Types default to all that the token covers.

    Raises InputError VHT-INPUT-EXPORT, VHT-INPUT-SINCE; RefusedError VHT-REFUSED-SCOPE.
    """
    types: list[str] = []
    for name, value in parameters:
        if name == "_type":
            types += [kind for kind in value.split(",") if kind]
        elif name == "_since":
            raise since_refused()
        elif name == "_outputFormat":
            if value not in ("application/fhir+ndjson", "application/ndjson", "ndjson"):
                raise InputError("exports come as NDJSON", code="VHT-INPUT-EXPORT")
        else:
            raise InputError(
                "an export parameter is not one that this API has",
                code="VHT-INPUT-EXPORT",
                hint="_type and _outputFormat are",
            )
    if not set(types) <= set(TABLES):
        raise InputError("a type is not one that this API has", code="VHT-INPUT-EXPORT", hint=", ".join(TABLES))
    if not set(types) <= access_types:
        raise RefusedError("the token does not cover that type", code="VHT-REFUSED-SCOPE")
    chosen = frozenset(types) or access_types
    return Kickoff(tuple(kind for kind in TABLES if kind in chosen))
