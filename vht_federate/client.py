"""HTTPS calls to our own services: the peer's typed error comes back as the same error here."""

import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vht_federate.errors import UnavailableError, VhtError, WireError, error_from_envelope

if TYPE_CHECKING:
    import httpx

__all__ = ["IDLE_S", "Client", "Prove", "ask_each"]

Prove = Callable[[str, str], str]
"""(method, URL) -> the value of a header ``DPoP`` (RFC 9449)."""

IDLE_S = 2.0  # a connection at rest is closed here, before a server does at the moment of the next request
PATIENCE_S = 180.0
_SOONEST_S = 1


def ask_each(names: Iterable[str], ask: Callable[[str], None], patience_s: float = PATIENCE_S) -> dict[str, VhtError]:
    """Ask one after the other; the error of each that raised one, in the order of ``names``.

    Whoever says when the same may be asked again is asked again then, while the others go on, until ``patience_s`` are
    over. Raises what ``ask`` raises other than VhtError.
    """
    end = time.monotonic() + patience_s
    due = dict.fromkeys(names, time.monotonic())
    errors: dict[str, VhtError | None] = dict.fromkeys(due)
    while due:
        name = min(due, key=due.__getitem__)
        time.sleep(max(0.0, due.pop(name) - time.monotonic()))
        try:
            ask(name)
            errors[name] = None
        except VhtError as error:
            errors[name] = error
            again = time.monotonic() + max(_SOONEST_S, error.retry_after_s or 0)
            if error.retry_after_s is not None and again <= end:
                due[name] = again
    return {name: error for name, error in errors.items() if error is not None}


class Client:
    """A client of one service, trusting only the certificate authority in ``ca`` (PEM). Proxies are ignored.

    ``prove`` makes the proof of possession that goes with every request, and with ``token``.
    """

    def __init__(
        self,
        base_url: str,
        ca: Path,
        *,
        token: str | None = None,
        prove: Prove | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        import httpx

        self._prove = prove
        headers = {"Authorization": f"{'DPoP' if prove else 'Bearer'} {token}"} if token else {}
        self._http = httpx.Client(
            base_url=base_url.rstrip("/"),
            verify=ssl.create_default_context(cafile=str(ca)),
            headers=headers,
            timeout=timeout_s,
            limits=httpx.Limits(keepalive_expiry=IDLE_S),
            trust_env=False,
        )
        self.base_url = base_url

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def request(self, method: str, path: str, **options: Any) -> "httpx.Response":
        """Raises the peer's typed error, or UnavailableError VHT-UNAVAILABLE-PEER where nothing answers.

        The error has the seconds of the answer's Retry-After.
        """
        from httpx import HTTPError

        if self._prove:
            proof = {"DPoP": self._prove(method, self.base_url.rstrip("/") + path)}
            options["headers"] = {**(options.get("headers") or {}), **proof}
        try:
            answer = self._http.request(method, path, **options)
        except HTTPError as error:
            raise UnavailableError(
                f"{self.base_url} does not answer ({type(error).__name__})",
                code="VHT-UNAVAILABLE-PEER",
                hint="is the service running, and does its certificate come from the CA you named?",
            ) from error
        if answer.status_code >= 400:
            try:
                envelope = dict(answer.json()["error"])
            except (ValueError, KeyError, TypeError) as error:
                raise WireError(
                    f"{self.base_url} answered {answer.status_code} without a typed error", code="VHT-WIRE-HTTP"
                ) from error
            typed = error_from_envelope(envelope)
            typed.retry_after_s = _seconds(answer.headers.get("Retry-After"))
            raise typed
        return answer

    def get(self, path: str, **options: Any) -> Any:
        """JSON of a GET. Raises as ``request`` does, and WireError VHT-WIRE-HTTP for an answer that is none."""
        return self._json(self.request("GET", path, **options))

    def post(self, path: str, json: Any = None, **options: Any) -> Any:
        """JSON of a POST. Raises as ``get`` does."""
        return self._json(self.request("POST", path, json=json, **options))

    def _json(self, answer: "httpx.Response") -> Any:
        try:
            return answer.json()
        except ValueError as error:
            raise WireError(f"{self.base_url} answered without JSON", code="VHT-WIRE-HTTP") from error


def _seconds(text: str | None) -> int | None:
    """Of a Retry-After (RFC 9110, 10.2.3); our services name no dates. More than eight digits is never."""
    return int(text) if text and len(text) <= 8 and text.isascii() and text.isdigit() else None
