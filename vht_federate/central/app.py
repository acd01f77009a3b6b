"""The platform's HTTP application: publications in; catalogue, files and pages out.

Publishing needs no account: the evidence is the credential, and what does not verify against the platform's own trust
file is refused.
"""

import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from python_multipart.exceptions import FormParserError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import Response

from vht_federate.central.admission import Admission
from vht_federate.central.store import Catalogue, Publication
from vht_federate.central.views import Views
from vht_federate.errors import InputError, PublicationError, VhtError
from vht_federate.request_bodies import BodyLimit
from vht_federate.serving import answer_typed_errors
from vht_federate.web import install, templates

__all__ = ["build_app"]

Page = Callable[..., Response]  # (request, template, status=200, **context)

NAV = [("/", "Catalogue"), ("/evidence", "Evidence"), ("/use", "How to use")]


def build_app(catalogue: Catalogue, admission: Admission, *, title: str, maximum_upload: int) -> FastAPI:
    """``maximum_upload`` in bytes."""
    app = answer_typed_errors(FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None))
    install(app)
    views = Views(catalogue)
    _add_publishing(app, admission)
    _add_api(app, catalogue, views)
    _add_files(app, catalogue, views)
    page = _pages(title)
    _add_pages(app, catalogue, views, page)
    _add_refusals(app, page)
    app.add_middleware(BodyLimit, maximum=maximum_upload, refusal=_too_large)
    return app


def _pages(title: str) -> Page:
    jinja_templates = templates(Path(__file__).parent / "templates", title, NAV)

    def page(request: Request, name: str, status: int = 200, /, **context: Any) -> Response:
        return jinja_templates.TemplateResponse(request, name, context, status_code=status)

    return page


def _add_publishing(app: FastAPI, admission: Admission) -> None:
    one_at_a_time = threading.Lock()

    def admit(upload: UploadFile) -> tuple[Publication, bool]:
        with one_at_a_time:
            return admission.admit(upload.file)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "service": "platform"}

    @app.post("/publications")
    async def publish(request: Request) -> JSONResponse:
        async with _form(request) as form:
            upload = form.get("bundle")
            if not isinstance(upload, UploadFile):
                raise PublicationError(
                    "send the evidence bundle as the multipart file 'bundle'", code="VHT-PUBLICATION-ARCHIVE"
                )
            publication, new = await run_in_threadpool(admit, upload)
        return JSONResponse(_receipt(publication), status_code=201 if new else 200)


def _too_large(maximum: int) -> PublicationError:
    return PublicationError(f"a publication has at most {maximum} bytes", code="VHT-PUBLICATION-SIZE")


@contextlib.asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """One file as multipart/form-data. Raises InputError VHT-INPUT-MULTIPART for a body that is none."""
    try:
        form = await request.form(max_files=1, max_fields=0)
    except (HTTPException, FormParserError, LookupError, ValueError) as error:
        raise InputError(
            "the body is not multipart/form-data with one file",
            code="VHT-INPUT-MULTIPART",
            hint="curl -F bundle=@evidence.tar.gz",
        ) from error
    try:
        yield form
    finally:
        await form.close()


def _receipt(publication: Publication) -> dict[str, Any]:
    component, cohort = publication.releases.get("component"), publication.releases.get("cohort")
    pages = {"evidence": f"/evidence/{publication.id}"}
    pages |= {kind: f"/{kind}s/{identifier}" for kind, identifier in publication.releases.items()}
    return {"publication": publication.id, "component": component, "cohort": cohort, "pages": pages}


def _add_api(app: FastAPI, catalogue: Catalogue, views: Views) -> None:
    def listed(kind: str) -> list[dict[str, Any]]:
        return [views.release(release) for release in catalogue.releases(kind)]

    @app.get("/api/components")
    def components() -> dict[str, Any]:
        return {"components": listed("component")}

    @app.get("/api/components/{identifier}")
    def component(identifier: str) -> dict[str, Any]:
        view = views.component(catalogue.release("component", identifier))
        return {**view["release"], "component": view["component"], "files": view["files"]}

    @app.get("/api/cohorts")
    def cohorts() -> dict[str, Any]:
        return {"cohorts": listed("cohort")}

    @app.get("/api/cohorts/{identifier}")
    def cohort(identifier: str) -> dict[str, Any]:
        view = views.cohort(catalogue.release("cohort", identifier))
        codebook = view["book"].model_dump(mode="json")
        return {**view["release"], "codebook": codebook, "sdmetrics": view["quality"], "files": view["files"]}


def _add_files(app: FastAPI, catalogue: Catalogue, views: Views) -> None:
    @app.get("/api/publications")
    def publications() -> dict[str, Any]:
        rows = catalogue.publications()
        return {"publications": [{**_receipt(row), "received_at": row.received_at} for row in rows]}

    @app.get("/api/publications/{identifier}")
    def publication(identifier: str) -> dict[str, Any]:
        published = catalogue.publication(identifier)
        head = {"received_at": published.received_at, "sha256": published.sha256, "study_id": published.study_id}
        return {**_receipt(published), **head, "evidence": published.evidence, "files": views.files(published)}

    @app.get("/api/publications/{identifier}/bundle.tar.gz")
    def archive(identifier: str) -> FileResponse:
        published = catalogue.publication(identifier)
        name = f"evidence-{published.id}.tar.gz"
        return FileResponse(views.archive(published), media_type="application/gzip", filename=name)

    @app.get("/api/publications/{identifier}/files/{path:path}")
    def file(identifier: str, path: str) -> FileResponse:
        full_path = views.file(catalogue.publication(identifier), path)
        return FileResponse(full_path, media_type="application/octet-stream", filename=full_path.name)


def _add_pages(app: FastAPI, catalogue: Catalogue, views: Views, page: Page) -> None:
    @app.get("/", response_class=HTMLResponse)
    def home(request: Request) -> Response:
        components = [views.release(release) for release in catalogue.releases("component")]
        cohorts = [views.release(release) for release in catalogue.releases("cohort")]
        count = len(catalogue.publications())
        return page(request, "home.html", components=components, cohorts=cohorts, publications=count)

    @app.get("/components/{identifier}", response_class=HTMLResponse)
    def component(request: Request, identifier: str) -> Response:
        return page(request, "component.html", **views.component(catalogue.release("component", identifier)))

    @app.get("/cohorts/{identifier}", response_class=HTMLResponse)
    def cohort(request: Request, identifier: str) -> Response:
        return page(request, "cohort.html", **views.cohort(catalogue.release("cohort", identifier)))

    @app.get("/evidence", response_class=HTMLResponse)
    def publications(request: Request) -> Response:
        return page(request, "publications.html", publications=catalogue.publications())

    @app.get("/evidence/{identifier}", response_class=HTMLResponse)
    def evidence(request: Request, identifier: str) -> Response:
        publication = catalogue.publication(identifier)
        return page(
            request,
            "evidence.html",
            publication=publication,
            evidence=publication.evidence,
            files=views.files(publication),
        )

    @app.get("/use", response_class=HTMLResponse)
    def use(request: Request) -> Response:
        return page(request, "use.html", origin=f"{request.url.scheme}://{request.url.netloc}")


def _add_refusals(app: FastAPI, page: Page) -> None:
    """A page for people, the error envelope for programs."""

    def refusal(request: Request, error: VhtError, status: int) -> Response:
        api = request.url.path.startswith(("/api/", "/publications", "/health"))
        if not api and "text/html" in request.headers.get("accept", ""):
            return page(request, "error.html", status, error=error, status=status)
        return JSONResponse({"error": error.envelope()}, status_code=status)

    @app.exception_handler(VhtError)
    async def typed(request: Request, error: VhtError) -> Response:
        return refusal(request, error, 404 if error.code == "VHT-INPUT-NOT-FOUND" else error.http_status)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = {404: "VHT-INPUT-NOT-FOUND", 405: "VHT-INPUT-METHOD"}.get(error.status_code, "VHT-INPUT")
        words = "there is nothing at this address" if error.status_code == 404 else str(error.detail)
        input_error = InputError(words, code=code, hint="the catalogue is at /")
        return refusal(request, input_error, error.status_code)
