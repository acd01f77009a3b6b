"""A browser on a node's console, with an approver and a viewer who have accounts there."""

import re

import httpx

from connector.listeners.internal import internal_app
from connector.node import Node
from kit.hospital import Hospital
from vht_federate.testing.asgi import AppClient

__all__ = ["Console"]


class Console:
    def __init__(self, node: Node, hospital: Hospital) -> None:
        self.node, self.hospital = node, hospital
        node.accounts.add("Dr Ada", "approver", "correct horse")
        node.accounts.add("Vera", "viewer", "battery staple")
        self.browser = AppClient(internal_app(node))

    def log_in(self, name: str = "Dr Ada", password: str = "correct horse") -> httpx.Response:  # noqa: S107
        return self.browser.post("/login", data={"name": name, "password": password})

    def form_key(self) -> str:
        match = re.search(r'name="form_key" value="([^"]+)"', self.browser.get("/").text)
        assert match
        return match[1]
