"""Routes of the local FHIR API, to be mounted on the node's internal listener and nowhere else.

Every failure is an OperationOutcome (at the token endpoint RFC 6749's error object), and none repeats the request.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from connector.fhir_api.access_log import Event
from connector.fhir_api.documents import capability_statement, operation_outcome, smart_configuration
from connector.fhir_api.export_jobs import Output, manifest
from connector.fhir_api.export_request import posted, read_kickoff
from connector.fhir_api.request_handler import Answers
from connector.fhir_api.service import LocalApi
from connector.fhir_api.tokens import Access, oauth_error
from connector.http_guards import bearer
from vht_federate.errors import InputError, NotFoundError, VhtError

__all__ = ["fhir_app"]

FHIR = "application/fhir+json; fhirVersion=4.0"
_STATUS = {
    "VHT-REFUSED-TOKEN": 401,
    "VHT-REFUSED-RATE": 429,
    "VHT-INPUT-GONE": 410,
    "VHT-INPUT-SIZE": 413,
    "VHT-PERMIT-STATUS-UNREACHABLE": 503,
    "VHT-UNAVAILABLE-DEADLINE": 503,
}
UNFORESEEN = VhtError("internal error", hint="the node's operator finds the cause in its log")
Act = Callable[[Request, bytes, Access], tuple[Response, Event | None]]
Endpoint = Callable[[Request], Awaitable[Response]]


def fhir_app(api: LocalApi) -> Starlette:
    """The application behind ``/fhir``."""
    routes = _Routes(api)
    return Starlette(
        routes=routes.all(),
        exception_handlers={VhtError: _failed, HTTPException: _failed_http, Exception: _failed_unforeseen},
    )


def _outcome(error: VhtError, status: int) -> Response:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "10"}}
    return Response(operation_outcome(error, status), status, headers.get(status), FHIR)


async def _failed(_: Request, error: Exception) -> Response:
    assert isinstance(error, VhtError)
    return _outcome(error, _STATUS.get(error.code, error.http_status))


async def _failed_http(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    messages = {404: "this API has no such address", 405: "this address takes another method"}
    code = {404: "VHT-INPUT-NOT-FOUND", 405: "VHT-INPUT-METHOD"}.get(status, "VHT-INPUT")
    return _outcome(InputError(messages.get(status, "the request cannot be understood"), code=code), status)


async def _failed_unforeseen(_: Request, __: Exception) -> Response:
    return _outcome(UNFORESEEN, 500)


class _Routes:
    def __init__(self, api: LocalApi) -> None:
        self._api = api
        self._answers = Answers(api)

    def all(self) -> list[Route]:
        answers, get, post = self._answers, ["GET"], ["POST"]
        return [
            Route("/metadata", self._metadata, methods=get),
            Route("/.well-known/smart-configuration", self._smart, methods=get),
            Route("/token", self._token, methods=post),
            *(Route(f"/{level}$export", self._asked("export", self._export), methods=["GET", "POST"])
              for level in ("", "Patient/")),
            Route("/export-status/{job}", self._asked("export-status", self._status), methods=get),
            Route("/export-status/{job}", self._asked("export-cancel", self._cancel), methods=["DELETE"]),
            Route("/export-file/{job}/{name}", self._asked("download", self._download), methods=get),
            *(Route(f"/{level}$viewdefinition-run", self._asked("view", answers.view), methods=post)
              for level in ("", "ViewDefinition/")),
            Route("/{type}/_search", self._asked("search", answers.search), methods=post),
            Route("/{type}", self._asked("search", answers.search), methods=get),
            Route("/{type}/{id}", self._asked("read", answers.read), methods=get),
        ]  # fmt: skip

    def _asked(self, what: str, act: Act) -> Endpoint:
        """An endpoint for clients with a token; what it did, or why not, is in the access log before the answer."""

        def answer(request: Request, body: bytes) -> Response:
            token = bearer(request.headers.get("authorization"))
            try:
                access = self._api.access(token)
                response, event = act(request, body, access)
            except VhtError as error:
                self._api.note_refusal(what, _address(request), error, self._api.tokens.holder(token))
                raise
            except Exception:
                self._api.note_refusal(what, _address(request), UNFORESEEN, self._api.tokens.holder(token))
                raise
            if event is not None:
                self._api.note(event, access.client)
            return response

        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(answer, request, await request.body())

        return endpoint

    # --- what anybody may ask -------------------------------------------------------------------------------------

    async def _metadata(self, _: Request) -> Response:
        statement = await run_in_threadpool(
            capability_statement, self._api.base, self._api.tokens.url, self._api.clock()
        )
        return Response(statement, media_type=FHIR)

    async def _smart(self, _: Request) -> Response:
        return JSONResponse(smart_configuration(self._api.base, self._api.tokens.url))

    async def _token(self, request: Request) -> Response:
        body = await request.body()
        return await run_in_threadpool(self._grant, request, body)

    def _grant(self, request: Request, body: bytes) -> Response:
        address, client = _address(request), None
        headers = {"Cache-Control": "no-store", "Pragma": "no-cache"}
        try:
            self._api.require_rate(f"token {address}")
            token_request = self._api.tokens.asked(_form(request, body))
            client = token_request.client
            token_response = self._api.tokens.grant(token_request)
        except VhtError as error:
            self._api.note_refusal("token", address, error, client)
            error_object = oauth_error(error)
            return JSONResponse(error_object, 401 if error_object["error"] == "invalid_client" else 400, headers)
        except Exception:
            self._api.note_refusal("token", address, UNFORESEEN, client)
            raise
        self._api.note(Event("token", address, query=f"scope={token_response['scope']}"), client)
        return JSONResponse(token_response, headers=headers)

    # --- exports --------------------------------------------------------------------------------------------------

    def _export(self, request: Request, body: bytes, access: Access) -> tuple[Response, Event]:
        if "respond-async" not in request.headers.get("prefer", ""):
            raise InputError("an export is asynchronous", code="VHT-INPUT-EXPORT", hint="Prefer: respond-async")
        parameters = posted(body) if request.method == "POST" else list(request.query_params.multi_items())
        kickoff = read_kickoff(parameters, access.types)
        level = "Patient/" if request.url.path.endswith("Patient/$export") else ""
        query = f"{level}$export?{kickoff.spelled()}"
        job = self._api.exports.begin(access, f"{self._api.base}/{query}", kickoff)
        headers = {"Content-Location": f"{self._api.base}/export-status/{job.id}"}
        return Response(status_code=202, headers=headers), Event("export", _address(request), query=query)

    def _status(self, request: Request, _: bytes, access: Access) -> tuple[Response, None]:
        job = self._api.exports.job(access, request.path_params["job"])
        if job.state == "failed" and job.error is not None:
            raise job.error
        if job.state != "done":
            headers = {"X-Progress": job.progress, "Retry-After": str(self._api.limits.poll_s)}
            return Response(status_code=202, headers=headers), None

        def address(output: Output) -> str:
            return f"{self._api.base}/export-file/{job.id}/{output.name}"

        ends = job.ends.strftime("%a, %d %b %Y %H:%M:%S GMT") if job.ends else ""
        return JSONResponse(manifest(job, address), headers={"Expires": ends}), None

    def _cancel(self, request: Request, _: bytes, access: Access) -> tuple[Response, Event]:
        self._api.exports.cancel(access, request.path_params["job"])
        return Response(status_code=202), Event("export-cancel", _address(request))

    def _download(self, request: Request, _: bytes, access: Access) -> tuple[Response, Event]:
        path, output = self._api.exports.file(access, request.path_params["job"], request.path_params["name"])
        if not path.is_file():
            raise NotFoundError("no such file of this export")
        event = Event("download", _address(request), resource=output.name, count=output.count)
        return FileResponse(path, media_type="application/fhir+ndjson"), event


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def _form(request: Request, body: bytes) -> dict[str, Any]:
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise InputError("a token is asked for with a form", code="VHT-INPUT-ASSERTION")
    try:
        return dict(parse_qsl(body.decode("ascii"), max_num_fields=20))
    except (UnicodeDecodeError, ValueError) as error:
        raise InputError("the form cannot be read", code="VHT-INPUT-ASSERTION") from error
