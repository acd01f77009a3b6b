"""``vht platform``: the central catalogue of released components and synthetic cohorts."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from vht_federate import output
from vht_federate.central.settings import PlatformSettings
from vht_federate.client import Client
from vht_federate.errors import InputError
from vht_federate.evidence.trust import TrustFile
from vht_federate.processes import PidFile, stop_process
from vht_federate.serving import Listener, await_ready, serve
from vht_federate.tcp_ports import free_port

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Run the central platform.")

State = Annotated[Path, typer.Argument(help="State directory of the platform.")]


def _now() -> datetime:
    return datetime.now(UTC)


@app.command("init")
@output.command("platform init")
def init(
    state: State,
    certificate: Annotated[Path, typer.Option(help="TLS certificate (PEM).")],
    key: Annotated[Path, typer.Option(help="TLS key (PEM).")],
    ca: Annotated[Path, typer.Option(help="Certificate authority (PEM) of this platform's certificate.")],
    trust: Annotated[Path, typer.Option(help="Trust file ('vht audit trust'); read again for each publication.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 chooses one.")] = 0,
    title: Annotated[str, typer.Option(help="Name of the catalogue.")] = "Virtual human twin catalogue",
) -> None:
    """Make a platform's state directory."""
    for path in (certificate, key, ca):
        if not path.is_file():
            raise InputError(f"there is no file {path}", code="VHT-INPUT-TLS", hint="make one with 'vht pki'")
    TrustFile.read(trust)
    state.mkdir(parents=True, exist_ok=True)
    paths = {"certificate": certificate.resolve(), "key": key.resolve(), "ca": ca.resolve(), "trust": trust.resolve()}
    settings = PlatformSettings(title=title, host=host, port=port or free_port(host), **paths)
    settings.write(state)
    output.emit("platform init", {"state": str(state), "url": settings.url}, f"platform at {settings.url}")


@app.command("serve")
@output.command("platform serve")
def serve_platform(state: State) -> None:
    """Serve the catalogue over TLS, until stopped."""
    import asyncio

    from vht_federate.central.admission import Admission
    from vht_federate.central.app import build_app
    from vht_federate.central.archive import Limits
    from vht_federate.central.store import Catalogue

    settings = PlatformSettings.read(state)
    upload = settings.maximum_upload_mb << 20
    with PidFile(state / "serve.pid"):
        catalogue = Catalogue(state)
        admission = Admission(catalogue, settings.trust, _now, Limits(total_bytes=4 * upload))
        service = build_app(catalogue, admission, title=settings.title, maximum_upload=upload)
        output.progress(f"platform on {settings.url}")
        asyncio.run(serve([Listener(service, settings.host, settings.port, settings.certificate, settings.key)]))
    output.emit("platform serve", {"stopped": True})


@app.command("status")
@output.command("platform status")
def status(
    state: State,
    wait: Annotated[float, typer.Option(help="Seconds to wait until it answers; exit code 5 where it does not.")] = 0.0,
) -> None:
    """Is it running, and what does it hold?"""
    settings, pid_file = PlatformSettings.read(state), PidFile(state / "serve.pid")
    await_ready(
        lambda: pid_file.listens(settings.port),
        wait_s=wait,
        what="the platform",
    )
    pid = pid_file.running()
    data: dict[str, Any] = {"url": settings.url, "running": pid is not None, "pid": pid}
    if pid is not None:
        with Client(settings.url, settings.ca) as client:
            data["health"] = client.get("/health")["status"]
            data["components"] = len(client.get("/api/components")["components"])
            data["cohorts"] = len(client.get("/api/cohorts")["cohorts"])
    output.emit("platform status", data, output.table("Platform", ["", ""], data.items()))


@app.command("stop")
@output.command("platform stop")
def stop(state: State) -> None:
    """Stop the platform."""
    pid = PidFile(state / "serve.pid").running()
    if pid is not None:
        stop_process(pid)
    output.emit("platform stop", {"stopped": pid is not None}, "stopped" if pid is not None else "was not running")


@app.command("publish")
@output.command("platform publish")
def publish(
    url: Annotated[str, typer.Argument(help="URL of a platform.")],
    bundle: Annotated[Path, typer.Argument(help="Folder of an evidence bundle.")],
    ca: Annotated[Path, typer.Option(help="Certificate authority (PEM) of the platform's certificate.")],
) -> None:
    """Send an evidence bundle with its releases to a platform."""
    from vht_federate.central.archive import pack

    if not (bundle / "manifest.json").is_file():
        raise InputError(f"{bundle} is not an evidence bundle", code="VHT-INPUT-BUNDLE")
    with tempfile.TemporaryFile() as archive, Client(url, ca, timeout_s=300) as client:
        pack(bundle, archive)
        archive.seek(0)
        files = {"bundle": ("bundle.tar.gz", archive, "application/gzip")}
        data = client.request("POST", "/publications", files=files).json()
    output.emit("platform publish", data, f"published: {url}{data['pages']['evidence']}")


@app.command("list")
@output.command("platform list")
def list_releases(state: State) -> None:
    """List the catalogue of a running platform."""
    settings = PlatformSettings.read(state)
    with Client(settings.url, settings.ca) as client:
        releases = [*client.get("/api/components")["components"], *client.get("/api/cohorts")["cohorts"]]
    rows = [
        (
            *(release["kind"], release["id"], release["study_id"], f"{release['epsilon']:.3f}"),
            *(release["published_at"], _figures(release.get("evaluation"))),
        )
        for release in releases
    ]
    columns = ["kind", "id", "study", "epsilon", "published", "released figures"]
    output.emit("platform list", {"releases": releases}, output.table("Catalogue", columns, rows))


def _figures(evaluation: dict[str, Any] | None) -> str | None:
    return "\n".join(f"{one['title']} {one['text']}" for one in evaluation.values()) if evaluation else None
