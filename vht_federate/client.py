"""HTTPS calls to our own services: the peer's typed error comes back as the same error here."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vht_federate.errors import UnavailableError, WireError, error_from_envelope

if TYPE_CHECKING:
    import httpx

__all__ = ["IDLE_S", "Client", "Prove"]

Prove = Callable[[str, str], str]
"""(method, URL) -> the value of a header ``DPoP`` (RFC 9449)."""

IDLE_S = 2.0  # a connection at rest is closed here, before a server does at the moment of the next request


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
        """Raises the peer's typed error, or UnavailableError VHT-UNAVAILABLE-PEER where nothing answers."""
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
                envelope = answer.json()["error"]
            except (ValueError, KeyError, TypeError) as error:
                raise WireError(
                    f"{self.base_url} answered {answer.status_code} without a typed error", code="VHT-WIRE-HTTP"
                ) from error
            raise error_from_envelope(envelope)
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
