"""FHIR documents that the API writes of itself, each through the R4B model of its type before it leaves.

None of them repeats what a client sent.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

import orjson

from connector.fhir.resources import TABLES
from vht_federate.errors import VhtError

__all__ = ["bundle", "capability_statement", "checked", "operation_outcome", "smart_configuration"]

SEARCHES: dict[str, tuple[tuple[str, str], ...]] = {
    "Patient": (),
    "Observation": (("code", "token"), ("combo-code", "token"), ("date", "date")),
    "Condition": (("code", "token"), ("onset-date", "date"), ("recorded-date", "date")),
    "MedicationRequest": (("code", "token"), ("authoredon", "date")),
    "Encounter": (("class", "token"), ("type", "token"), ("date", "date")),
}
_COMMON = (("_id", "token"),)
_SUBJECT = (("patient", "reference"), ("subject", "reference"))
_OPERATION = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/"
_ISSUES = {
    400: "invalid",
    401: "login",
    403: "forbidden",
    404: "not-found",
    405: "not-supported",
    406: "not-supported",
    410: "deleted",
    413: "too-long",
    429: "throttled",
    503: "transient",
}
_NOT_SUPPORTED = "VHT-INPUT-SINCE"  # a parameter that the specification has and this API does not
_NO_SINCE = "_since is refused: when data were taken in is near their true dates, which are not told."


@cache
def _model(kind: str) -> Any:
    return getattr(import_module(f"fhir.resources.R4B.{kind.lower()}"), kind)


def checked(resource: dict[str, Any]) -> bytes:
    """``resource`` as JSON, once its model took it. Raises ValueError where it does not."""
    _model(resource["resourceType"]).model_validate(resource)
    return orjson.dumps(resource)


def operation_outcome(error: VhtError, status: int) -> bytes:
    """The answer to everything that goes wrong: our own words and code."""
    code = _ISSUES.get(status, "exception" if status >= 500 else "processing")
    code = "not-supported" if error.code == _NOT_SUPPORTED else code
    diagnostics = f"{error.message} ({error.code})" + (f" – {error.hint}" if error.hint else "")
    issue = {"severity": "error", "code": code, "details": {"text": error.code}, "diagnostics": diagnostics}
    return checked({"resourceType": "OperationOutcome", "issue": [issue]})


def bundle(
    base: str, resources: Sequence[dict[str, Any]], *, total: int, own: str, following: str | None, at: datetime
) -> bytes:
    """A searchset."""
    links = [{"relation": "self", "url": own}] + ([{"relation": "next", "url": following}] if following else [])
    entries = [
        {
            "fullUrl": f"{base}/{resource['resourceType']}/{resource['id']}",
            "resource": resource,
            "search": {"mode": "match"},
        }
        for resource in resources
    ]
    searchset = {
        "resourceType": "Bundle",
        "type": "searchset",
        "timestamp": at.isoformat(),
        "total": total,
        "link": links,
    }
    return checked(searchset | ({"entry": entries} if entries else {}))


def smart_configuration(base: str, token_url: str) -> dict[str, Any]:
    """SMART App Launch 2: what a backend service needs to know."""
    return {
        "token_endpoint": token_url,
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ["RS384", "ES384"],
        "grant_types_supported": ["client_credentials"],
        "scopes_supported": ["system/*.rs", *(f"system/{kind}.rs" for kind in TABLES)],
        "capabilities": ["client-confidential-asymmetric", "permission-v2"],
        "issuer": base,
    }


def capability_statement(base: str, token_url: str, at: datetime) -> bytes:
    """What this API can do, and nothing of the data."""
    oauth = {
        "url": "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris",
        "extension": [{"url": "token", "valueUri": token_url}],
    }
    service = {
        "coding": [
            {
                "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                "code": "SMART-on-FHIR",
            }
        ]
    }
    statement = {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": at.isoformat(),
        "kind": "instance",
        "software": {"name": "vht-federate", "version": version("vht-federate")},
        "implementation": {"description": "Local FHIR API of a hospital's node, under data permits", "url": base},
        "fhirVersion": "4.0.1",
        "format": ["json"],
        "instantiates": ["http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"],
        "rest": [
            {
                "mode": "server",
                "security": {"extension": [oauth], "cors": False, "service": [service]},
                "resource": [_resource(kind) for kind in TABLES],
                "operation": [
                    {"name": "export", "definition": f"{_OPERATION}export", "documentation": _NO_SINCE},
                    {
                        "name": "viewdefinition-run",
                        "definition": "http://sql-on-fhir.org/OperationDefinition/$viewdefinition-run",
                        "documentation": _NO_SINCE,
                    },
                ],
            }
        ],
    }
    return checked(statement)


def _resource(kind: str) -> dict[str, Any]:
    searches = (*_COMMON, *(_SUBJECT if kind != "Patient" else ()), *SEARCHES[kind])
    resource: dict[str, Any] = {
        "type": kind,
        "interaction": [{"code": "read"}, {"code": "search-type"}],
        "versioning": "no-version",
        "searchParam": [{"name": name, "type": type_} for name, type_ in searches],
    }
    if kind == "Patient":
        resource["operation"] = [
            {"name": "export", "definition": f"{_OPERATION}patient-export", "documentation": _NO_SINCE}
        ]
    return resource
