"""Reads, searches and view runs: the answer, and the event that tells of it."""

from urllib.parse import parse_qsl, urlencode

import orjson
from starlette.requests import Request
from starlette.responses import Response

from connector.fhir.resources import TABLES
from connector.fhir_api.access_log import Event
from connector.fhir_api.documents import bundle
from connector.fhir_api.permit_view import PermitView, interrupted_after
from connector.fhir_api.search import Page, Query, find, read_query
from connector.fhir_api.service import LocalApi
from connector.fhir_api.tokens import Access
from connector.fhir_api.view_run import FORMATS, read_parameters, run_view
from vht_federate.errors import InputError, NotFoundError, RefusedError

__all__ = ["Answers"]

FHIR = "application/fhir+json; fhirVersion=4.0"
_FIELDS = 100


class Answers:
    """Answers of one node's API to a client that showed its token."""

    def __init__(self, api: LocalApi) -> None:
        self._api = api

    def read(self, request: Request, _: bytes, access: Access) -> tuple[Response, Event]:
        kind = _covered(request.path_params["type"], access)
        query = read_query(kind, [("_id", request.path_params["id"])], self._api.limits, self._api.clock())
        permit_view, page = self._view_and_page(access, query)
        if not page.resources:
            raise NotFoundError("this permit sees no such resource")
        [resource] = page.resources
        patient = resource["id"] if kind == "Patient" else resource["subject"]["reference"].removeprefix("Patient/")
        event = Event("read", _address(request), patient=patient, resource=f"{kind}/{resource['id']}")
        headers = {"ETag": f'W/"{permit_view.generation.number}"'}
        return Response(orjson.dumps(resource), headers=headers, media_type=FHIR), event

    def search(self, request: Request, body: bytes, access: Access) -> tuple[Response, Event]:
        kind = _covered(request.path_params["type"], access)
        parameters = list(request.query_params.multi_items())
        if request.method == "POST":
            parameters += _form(body)
        if len(parameters) > self._api.limits.search_parameters:
            raise InputError("a search has too many parameters", code="VHT-INPUT-SEARCH")
        query = read_query(kind, parameters, self._api.limits, self._api.clock())
        permit_view, page = self._view_and_page(access, query)
        understood, patient = _understood(query, permit_view, page)
        logged = f"{kind}?{understood}"
        if len(logged) > self._api.limits.query_length:  # cut short, it would not say who was asked for
            raise InputError(
                "the search is longer than its entry in the access log may be",
                code="VHT-INPUT-SEARCH",
                hint="ask for fewer patients, ids or codes at once",
            )
        number, base = permit_view.generation.number, self._api.base
        next_link = query.link(base, number, page.following) if page.following is not None else None
        self_link = query.link(base, number, query.offset)
        searchset = bundle(
            base, page.resources, total=page.total, own=self_link, following=next_link, at=self._api.clock()
        )
        event = Event("search", _address(request), patient=patient, query=logged, count=len(page.resources))
        return Response(searchset, media_type=FHIR), event

    def view(self, request: Request, body: bytes, access: Access) -> tuple[Response, Event]:
        view_request = read_parameters(body, request.query_params, self._api.limits)
        _covered(view_request.plan.resource, access)
        with self._api.working():
            permit_view = self._api.permit_views.view_for(access.permit)
            rows, count = run_view(permit_view, view_request, self._api.limits, self._api.scratch)
        query = f"{view_request.plan.resource}: {', '.join(column.name for column in view_request.plan.columns)}"
        event = Event("view", _address(request), query=query[:2_000], count=count)
        return Response(rows, media_type=FORMATS[view_request.format]), event

    def _view_and_page(self, access: Access, query: Query) -> tuple[PermitView, Page]:
        with self._api.working():
            permit_view = self._api.permit_views.view_for(access.permit, generation=query.generation)
            with permit_view.open() as connection, interrupted_after(connection, self._api.limits.query_s):
                return permit_view, find(permit_view, connection, query)


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def _covered(kind: str, access: Access) -> str:
    if kind not in TABLES:
        raise NotFoundError("this API has no resources of that type", hint=", ".join(TABLES))
    if kind not in access.types:
        raise RefusedError("the token does not cover that type", code="VHT-REFUSED-SCOPE")
    return kind


def _form(body: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_FIELDS)
    except (UnicodeDecodeError, ValueError) as error:
        raise InputError("the form cannot be read", code="VHT-INPUT-SEARCH") from error


def _understood(query: Query, permit_view: PermitView, page: Page) -> tuple[str, str | None]:
    """The search for the access log: only patients, ids and codes that this permit knows are repeated."""
    asked_by_name = query.names is not None
    names = set(permit_view.visible_patients.column("name").to_pylist()) if asked_by_name else set()
    shown_ids = {resource["id"] for resource in page.resources}
    codes = {code for _, code in permit_view.scope.codes}
    parameters: list[tuple[str, str]] = []
    for name, value in query.asked:
        if name.startswith(("patient", "subject")):
            values = [
                patient if patient in names else "unknown" for patient in value.replace("Patient/", "").split(",")
            ]
        elif name == "_id":
            values = [resource_id if resource_id in shown_ids else "unknown" for resource_id in value.split(",")]
        elif name in ("code", "combo-code", "type", "class"):
            values = [token if token.rpartition("|")[2] in codes else "other" for token in value.split(",")]
        else:
            values = [value]
        parameters.append((name, ",".join(dict.fromkeys(values))))
    patients = [patient for patient in query.names or () if patient in names]
    if query.type == "Patient" and query.ids:
        patients = [resource_id for resource_id in query.ids if resource_id in shown_ids]
    return urlencode(parameters), patients[0] if len(patients) == 1 else None
