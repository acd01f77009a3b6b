"""Ask an ASGI application without a socket: ``AppClient(app).get("/health")``."""

import asyncio
from typing import Any

import httpx
from starlette.types import ASGIApp

__all__ = ["AppClient"]


class AppClient:
    """A synchronous client over ``httpx.ASGITransport``. Cookies last as long as the client.

    ``raise_app_exceptions=False`` shows a failure as the 500 that a peer would see.
    """

    def __init__(
        self, app: ASGIApp, *, headers: dict[str, str] | None = None, raise_app_exceptions: bool = True
    ) -> None:
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=raise_app_exceptions)
        self._headers = headers or {}
        self.cookies = httpx.Cookies()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=self._transport, base_url="https://app", headers=self._headers, cookies=self.cookies
            ) as client:
                answer = await client.request(method, path, **options)
                self.cookies = client.cookies
                return answer

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)
