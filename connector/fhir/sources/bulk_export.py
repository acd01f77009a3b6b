"""Bulk Data export: kick-off in the dialects in use, polling until the manifest is there.

STU 2 and 3 take GET with comma-separated parameters; the ballot of 4.0 takes POST with a Parameters resource in which
a parameter repeats, and calls the manifest's ``error`` files ``outcome`` (its change log).
"""

from datetime import UTC, datetime
from typing import Any

import httpx
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from connector.fhir.sources.http_client import FHIR_JSON, SourceClient, refused
from connector.fhir.sources.operation_outcome import status_of
from connector.fhir.sources.progress import Piece
from connector.fhir.sources.response_body import malformed
from connector.fhir.sources.retry import retry_after_s
from connector.fhir.sources.settings import SourceSettings
from vht_federate.errors import UnavailableError

__all__ = ["Expired", "JobFailed", "Manifest", "await_manifest", "fhir_instant", "kick_off", "release_job"]

NDJSON = "application/fhir+ndjson"
FIRST_POLL_S = 1.0
MOST_PAGES = 10_000
_OURS_TO_MEND = frozenset({401, 403})  # the job is well, our authorization is not


class Expired(Exception):
    """The server no longer knows the job, or a file of it: it has to be asked anew."""


class JobFailed(UnavailableError):
    """The server gave up on the export; the next pull asks anew."""

    default_code = "VHT-UNAVAILABLE-SOURCE-JOB"


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    url: str
    type: str | None = None
    count: int | None = Field(default=None, ge=0)


class _Link(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    relation: str
    url: str


class Manifest(BaseModel):
    """Where the files of a finished export are."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    transactionTime: AwareDatetime  # noqa: N815 - FHIR's name
    requiresAccessToken: bool = False  # noqa: N815
    output: tuple[_File, ...] = ()
    deleted: tuple[_File, ...] = ()
    error: tuple[_File, ...] = ()
    outcome: tuple[_File, ...] = ()
    link: tuple[_Link, ...] = ()

    def pieces(self, stamp: str) -> tuple[Piece, ...]:
        """Every file, with the name it gets here; two names are never equal."""
        groups = (("output", self.output), ("deleted", self.deleted), ("outcome", self.error + self.outcome))
        kind_files = [(kind, file) for kind, files in groups for file in files]
        return tuple(
            Piece.model_validate(
                {
                    "name": f"{stamp}-{number:05d}-{_word(file.type) or kind}.ndjson",
                    "kind": kind,
                    "type": _word(file.type),
                    "url": file.url,
                    "count": file.count,
                }
            )
            for number, (kind, file) in enumerate(kind_files, 1)
        )


def _word(text: str | None) -> str | None:
    return text if text and text.isascii() and text.isalpha() and len(text) <= 64 else None


def fhir_instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _parameters(settings: SourceSettings, since: datetime | None) -> list[tuple[str, str, str]]:
    """(name, value, kind of Parameters value) of the question."""
    parameters = [("_outputFormat", NDJSON, "valueString")]
    parameters += [("_type", kind, "valueString") for kind in settings.types]
    if since is not None:
        parameters.append(("_since", fhir_instant(since), "valueInstant"))
        if settings.since_as_filter:
            since_filter = f"_lastUpdated=ge{fhir_instant(since)}"
            parameters += [("_typeFilter", f"{kind}?{since_filter}", "valueString") for kind in settings.types]
    return parameters


def _joined(parameters: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """One parameter of each name, its values separated by commas; but each filter by itself, for it may hold commas,
    and HAPI 8.8 does not see where one of a type such as MedicationRequest begins."""
    values: dict[str, tuple[list[str], str]] = {}
    filters = [parameter for parameter in parameters if parameter[0] == "_typeFilter"]
    for name, value, kind in parameters:
        if name != "_typeFilter":
            values.setdefault(name, ([], kind))[0].append(value)
    return [*((name, ",".join(name_values), kind) for name, (name_values, kind) in values.items()), *filters]


def kick_off(client: SourceClient, settings: SourceSettings, since: datetime | None) -> str:
    """Ask for an export. The address to poll."""
    places = {"system": "", "patient": "/Patient", "group": f"/Group/{settings.group}"}
    url = f"{settings.base}{places[settings.level]}/$export"
    headers = {"Accept": FHIR_JSON, "Prefer": "respond-async"}
    parameters = _parameters(settings, since)
    if settings.dialect != "post":
        parameters = _joined(parameters)
    if settings.dialect == "get":
        query = httpx.QueryParams([(name, value) for name, value, _ in parameters])
        answer = client.ask("GET", f"{url}?{query}", headers=headers)
    else:
        body = {
            "resourceType": "Parameters",
            "parameter": [{"name": name, kind: value} for name, value, kind in parameters],
        }
        answer = client.ask("POST", url, json=body, headers=headers | {"Content-Type": FHIR_JSON})
    place = answer.headers.get("Content-Location")
    if answer.status_code != 202 or not place:
        raise refused(answer, "the kick-off of an export")
    return client.guard.check(place, seen_at=url)


def await_manifest(client: SourceClient, settings: SourceSettings, status_url: str) -> Manifest:
    """Poll until the export is finished. Raises Expired where the server forgot it, JobFailed where it failed.

    An error that the server calls transient is no failure of the job: the client has asked again by then.
    """
    wait = FIRST_POLL_S
    while True:
        answer = client.ask("GET", status_url, headers={"Accept": "application/json"})
        if answer.status_code == 200:
            return _whole(client, _manifest(answer, status_url, client))
        if answer.status_code in (404, 410):
            raise Expired
        if answer.status_code >= 400 and answer.status_code not in _OURS_TO_MEND:
            raise JobFailed(f"the FHIR server answers {status_of(answer)} to an export that it had begun")
        if answer.status_code != 202:
            raise refused(answer, "a question for the state of an export")
        retry_after = retry_after_s(answer.headers.get("Retry-After"), client.pace.now())
        client.pace.pause(min(wait if retry_after is None else retry_after, settings.longest_poll_s))
        wait *= 1.5


def _manifest(answer: httpx.Response, url: str, client: SourceClient) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(answer.content)
    except ValidationError:
        raise malformed("manifest") from None

    def absolute(files: tuple[_File, ...]) -> tuple[_File, ...]:
        return tuple(file.model_copy(update={"url": client.guard.check(file.url, seen_at=url)}) for file in files)

    changes: dict[str, Any] = {
        name: absolute(getattr(manifest, name)) for name in ("output", "deleted", "error", "outcome")
    }
    links = tuple(
        link.model_copy(update={"url": client.guard.check(link.url, seen_at=url)})
        for link in manifest.link
        if link.relation == "next"
    )
    return manifest.model_copy(update={**changes, "link": links})


def _whole(client: SourceClient, first: Manifest) -> Manifest:
    """A manifest that goes on elsewhere, with all its pages."""
    page, seen_urls, files = first, set[str](), {name: getattr(first, name) for name in ("output", "deleted")}
    outcomes = first.error + first.outcome
    while page.link:
        url = page.link[0].url
        if url in seen_urls or len(seen_urls) >= MOST_PAGES:
            raise malformed("manifest, which leads in a circle,")
        seen_urls.add(url)
        answer = client.ask("GET", url, headers={"Accept": "application/json"})
        if answer.status_code != 200:
            raise refused(answer, "a question for a page of the manifest")
        page = _manifest(answer, url, client)
        files = {name: files[name] + getattr(page, name) for name in files}
        outcomes += page.error + page.outcome
    return first.model_copy(update={**files, "error": (), "outcome": outcomes, "link": ()})


def release_job(client: SourceClient, status_url: str) -> None:
    """Tell the server that its files may go. Servers differ in what they answer, and nothing depends on it."""
    try:
        client.ask("DELETE", status_url)
    except UnavailableError:
        return
