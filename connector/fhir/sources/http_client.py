"""HTTP to a FHIR server as a source: guarded addresses, a token where it belongs, retries, redirects by hand.

What a caller gets is an answer that needs a decision (success, 404, a failed job); what passes by itself (a lost
connection, an expired token, an error that the server calls transient or whose status says so) was tried again until
patience or the deadline ended.
"""

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from connector.fhir.sources.operation_outcome import passes, status_of
from connector.fhir.sources.response_body import body_of, error_body_of
from connector.fhir.sources.retry import Retries, RetryPolicy, retry_after_s
from connector.fhir.sources.settings import SourceSettings
from connector.fhir.sources.smart_auth import Tokens
from vht_federate.errors import UnavailableError

__all__ = ["FHIR_JSON", "SourceClient", "refused", "too_much"]

FHIR_JSON = "application/fhir+json"
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MOST_REDIRECTS = 3
ANSWER_LIMIT = 256 << 20  # bytes of an answer that is held in memory: a manifest, a page
TIMEOUT = httpx.Timeout(60.0, connect=15.0)


def refused(answer: httpx.Response, what: str) -> UnavailableError:
    """An answer that nothing can be done about. Of its body nothing is repeated but the codes of its outcome."""
    hint = {401: "does the source need an authorization?", 403: "does the scope allow it?"}.get(answer.status_code, "")
    return UnavailableError(
        f"the FHIR server answers {status_of(answer)} to {what}", code="VHT-UNAVAILABLE-SOURCE-REFUSED", hint=hint
    )


def too_much() -> UnavailableError:
    return UnavailableError(
        "the FHIR server sends more than maximum_bytes of the source's file",
        code="VHT-UNAVAILABLE-SOURCE-SIZE",
        hint="raise maximum_bytes, or ask for fewer types",
    )


class SourceClient:
    """One conversation with one source. Use as a context manager."""

    def __init__(self, settings: SourceSettings, pace: RetryPolicy) -> None:
        verify = ssl.create_default_context(cafile=str(settings.ca) if settings.ca else None)
        self._http = httpx.Client(verify=verify, timeout=TIMEOUT, trust_env=False, follow_redirects=False)
        self.guard, self.pace, self.attempts = settings.guard, pace, settings.attempts
        try:
            self._tokens = (
                Tokens(self._http, self.guard, settings.base, settings.authorization, pace, settings.attempts)
                if settings.authorization
                else None
            )
        except BaseException:
            self._http.close()
            raise

    def __enter__(self) -> "SourceClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def patience(self) -> Retries:
        return Retries(self.pace, self.attempts)

    def ask(
        self, method: str, url: str, *, json: Any = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """An answer with its body in memory."""
        patience = self.patience()
        while True:
            try:
                with self.open(method, url, json=json, headers=headers, patience=patience) as answer:
                    content = body_of(answer, self.pace, limit=ANSWER_LIMIT)
                    return httpx.Response(
                        answer.status_code, headers=_plain(answer), content=content, request=answer.request
                    )
            except httpx.TransportError as error:
                patience.again(f"the connection broke ({type(error).__name__})")

    @contextmanager
    def open(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        patience: Retries | None = None,
        everywhere: bool = False,
    ) -> Iterator[httpx.Response]:
        """An answer whose body is still to be read, of an error in memory. The token goes home only, or ``everywhere``
        that is allowed.

        Raises httpx.TransportError where the connection breaks in the body.
        """
        answer = self._answer(method, url, json, dict(headers or {}), patience or self.patience(), everywhere)
        try:
            yield answer
        finally:
            answer.close()

    def _answer(
        self, method: str, url: str, json: Any, headers: dict[str, str], patience: Retries, everywhere: bool
    ) -> httpx.Response:
        url, renewed, redirects = self.guard.check(url), False, 0
        while True:
            self.pace.check()
            tokens = self._tokens if everywhere or self.guard.is_home(url) else None
            request_headers = headers | ({"Authorization": f"Bearer {tokens.bearer()}"} if tokens else {})
            request = self._http.build_request(method, url, json=json, headers=request_headers)
            try:
                answer = self._http.send(request, stream=True)
            except httpx.TransportError as error:
                patience.again(f"it does not answer ({type(error).__name__})")
                continue
            if answer.status_code == 401 and tokens and not renewed:
                answer.close()
                tokens.forget()
                renewed = True
            elif answer.status_code in REDIRECTS and method == "GET" and redirects < MOST_REDIRECTS:
                answer.close()
                url, redirects = self.guard.check(answer.headers.get("Location", ""), seen_at=url), redirects + 1
            elif answer.status_code < 400:
                return answer
            else:
                try:
                    failure = self._in_memory(answer)
                except httpx.TransportError as error:
                    patience.again(f"the connection broke ({type(error).__name__})")
                    continue
                if not passes(failure):
                    return failure
                wait = retry_after_s(failure.headers.get("Retry-After"), self.pace.now())
                patience.again(f"it answers {status_of(failure)}", wait)

    def _in_memory(self, answer: httpx.Response) -> httpx.Response:
        """An error with what it says, as far as that may be an OperationOutcome."""
        try:
            content = error_body_of(answer, self.pace)
        finally:
            answer.close()
        return httpx.Response(answer.status_code, headers=_plain(answer), content=content, request=answer.request)


def _plain(answer: httpx.Response) -> list[tuple[str, str]]:
    """Headers of a body that has been decoded."""
    dropped = {"content-encoding", "content-length", "transfer-encoding"}
    return [(name, value) for name, value in answer.headers.multi_items() if name not in dropped]
