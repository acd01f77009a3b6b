"""The SuperLink as a process: Flower's own application on a Unix socket, and on no port.

    python -m strategies.superlink_process HOME

Flower's command ``flower-superlink`` knows TCP alone. TLS ends at the gateway; what SuperNodes sign is checked here.
"""

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.supercore.logger import console_handler
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.main import create_app

from strategies.superlink import SuperLinkPaths
from strategies.superlink_socket import HOST, listen
from vht_federate.errors import UnavailableError
from vht_federate.serving import KEEP_ALIVE_S

__all__ = ["main", "superlink_app"]

PREDECESSOR_S = 20.0  # a predecessor that is ending has so long
POLL_S = 0.25


def superlink_app(paths: SuperLinkPaths) -> FastAPI:
    """Flower's three APIs over the database in ``paths``. SuperNodes sign what they send; executors know a secret."""
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host=HOST,
        port=0,
        insecure=True,
        certificates=None,
        superexec_auth_secret=paths.secret.read_bytes(),
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(paths.database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    app: FastAPI = create_app(config, SuperLinkLifespan)
    return app


@contextmanager
def _alone(lock: Path, patience_s: float) -> Iterator[None]:
    """No two SuperLinks share a database and a socket. The lock goes with the process that holds it, however it ends.

    Raises UnavailableError VHT-UNAVAILABLE-RUNNING.
    """
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    end = time.monotonic() + patience_s
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    raise UnavailableError(
                        "another SuperLink runs in this directory", code="VHT-UNAVAILABLE-RUNNING"
                    ) from error
                time.sleep(POLL_S)
        yield
    finally:
        os.close(file)


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    (home,) = sys.argv[1:] if arguments is None else arguments
    paths = SuperLinkPaths(Path(home))
    with _alone(paths.lock, PREDECESSOR_S):
        config = uvicorn.Config(
            superlink_app(paths),
            loop="asyncio",
            log_config=get_uvicorn_log_config(console_handler.level),
            access_log=False,
            ws="none",
            timeout_graceful_shutdown=3,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        uvicorn.Server(config).run(sockets=[listen(paths.socket)])


if __name__ == "__main__":
    main()
