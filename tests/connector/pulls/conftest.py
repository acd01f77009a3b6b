"""The small FHIR server, as often as a test wants it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
from kit.bulk_data_server import BulkServer
from kit.bulk_pulls import Serve, held


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(resources: dict[str, list[dict[str, Any]]] | None = None, **behaviour: Any) -> BulkServer:
            server = BulkServer(held() if resources is None else resources, **behaviour)
            running: AbstractContextManager[BulkServer] = server.running()
            return stack.enter_context(running)

        yield start
