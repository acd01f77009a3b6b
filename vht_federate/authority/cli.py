"""``vht permit``: issue, revoke and show data permits; serve the issuer's key and status list."""

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vht_federate import output
from vht_federate.authority.settings import AuthoritySettings, key_path, store_path
from vht_federate.errors import InputError
from vht_federate.processes import PidFile, stop_process
from vht_federate.serving import Listener, await_ready, serve
from vht_federate.signing.keys import PublicKey, SigningKey, unverified_claims
from vht_federate.tcp_ports import free_port

if TYPE_CHECKING:
    from vht_federate.authority.store import Register
    from vht_federate.domain.permit import Permit

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Issue, revoke and show data permits.")

State = Annotated[Path, typer.Option("--state", help="State directory of the permit issuer.")]


def _now() -> datetime:
    return datetime.now(UTC)


def _key(state: Path) -> SigningKey:
    if not key_path(state).exists():
        raise InputError(
            f"{state} holds no issuer's key", code="VHT-INPUT-STATE", hint="make one with 'vht permit init --state DIR'"
        )
    return SigningKey.read(key_path(state))


def _register(state: Path) -> "Register":
    from vht_federate.authority.store import Register

    _key(state)  # a mistyped directory must not become a register
    return Register(store_path(state))


@app.command("keygen")
@output.command("permit keygen")
def keygen(
    folder: Annotated[Path, typer.Argument(help="Folder for NAME.key and NAME.pub.json.")],
    name: Annotated[str, typer.Option(help="Name of the key.")] = "issuer",
) -> None:
    """Make an Ed25519 key, for an issuer or for a data user; keep one that exists."""
    path = folder / f"{name}.key"
    key = SigningKey.create(path)
    public = path.with_suffix(".pub.json")
    data = {"key": str(path), "public_key": str(public), "kid": key.public.kid}
    output.emit("permit keygen", data, f"public key: {public}\nkid: {key.public.kid}")


@app.command("init")
@output.command("permit init")
def init(
    state: State,
    certificate: Annotated[Path, typer.Option(help="TLS certificate (PEM).")],
    key: Annotated[Path, typer.Option(help="TLS key (PEM).")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 chooses one.")] = 0,
    hdab: Annotated[str, typer.Option(help="Name of the health data access body.")] = "Health Data Access Body",
    status_validity: Annotated[float, typer.Option(help="Seconds a status list is good for.", min=1)] = 60.0,
) -> None:
    """Make an issuer's state directory: key, register, configuration."""
    from vht_federate.authority.store import Register

    for path in (certificate, key):
        if not path.is_file():
            raise InputError(f"there is no file {path}", code="VHT-INPUT-TLS", hint="make one with 'vht pki cert'")
    issuer_key = SigningKey.create(key_path(state))
    Register(store_path(state))
    settings = AuthoritySettings(
        hdab=hdab,
        host=host,
        port=port or free_port(host),
        certificate=certificate.resolve(),
        key=key.resolve(),
        status_validity_s=status_validity,
    )
    settings.write(state)
    data = {"state": str(state), "url": f"https://{host}:{settings.port}", "kid": issuer_key.public.kid}
    output.emit("permit init", data, f"permit issuer at {data['url']}, key {issuer_key.public.kid}")


@app.command("serve")
@output.command("permit serve")
def serve_issuer(state: State) -> None:
    """Serve the issuer's public key, status list and register over TLS, until stopped."""
    import asyncio

    from vht_federate.authority.app import build_app

    settings = AuthoritySettings.read(state)
    service = build_app(
        _register(state),
        _key(state),
        hdab=settings.hdab,
        status_validity_s=settings.status_validity_s,
        clock=_now,
    )
    with PidFile(state / "serve.pid"):
        output.progress(f"permit issuer on https://{settings.host}:{settings.port}")
        asyncio.run(serve([Listener(service, settings.host, settings.port, settings.certificate, settings.key)]))
    output.emit("permit serve", {"stopped": True})


@app.command("status")
@output.command("permit status")
def status(
    state: State,
    wait: Annotated[float, typer.Option(help="Seconds to wait until it answers; exit code 5 where it does not.")] = 0.0,
) -> None:
    """Is the issuer's service running?"""
    settings, pid_file = AuthoritySettings.read(state), PidFile(state / "serve.pid")

    def ready() -> bool:
        return pid_file.listens(settings.port)

    await_ready(ready, wait_s=wait, what="the permit issuer")
    url, pid = f"https://{settings.host}:{settings.port}", pid_file.running()
    data = {"url": url, "running": pid is not None, "ready": ready(), "pid": pid}
    output.emit("permit status", data, f"permit issuer {url}: {'running' if pid else 'stopped'}")


@app.command("stop")
@output.command("permit stop")
def stop(state: State) -> None:
    """Stop the issuer's service."""
    pid = PidFile(state / "serve.pid").running()
    if pid is not None:
        stop_process(pid)
    output.emit("permit stop", {"stopped": pid is not None}, "stopped" if pid is not None else "was not running")


@app.command("issue")
@output.command("permit issue")
def issue(
    state: State,
    source: Annotated[Path, typer.Option("--from", help="Request file (TOML).")],
    out: Annotated[Path, typer.Option(help="File for the permit (JWT).")],
) -> None:
    """Sign a permit and enter it in the register."""
    from vht_federate.authority.issue import issue_permit

    key = _key(state)
    hdab = AuthoritySettings.read(state).hdab if (state / "authority.toml").exists() else ""
    new_id = f"permit-{_now():%Y%m%d}-{secrets.token_hex(5)}"
    permit, token = issue_permit(_register(state), key, source, clock=_now, new_id=new_id, hdab=hdab)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(token + "\n")
    data = {"permit_id": permit.permit_id, "permit": str(out), "expires_at": permit.expires_at.isoformat()}
    output.emit("permit issue", data, _table(permit))


@app.command("revoke")
@output.command("permit revoke")
def revoke(
    state: State,
    permit_id: Annotated[str, typer.Argument(help="The permit's id.")],
    reason: Annotated[str, typer.Option(help="Why (kept in the issuer's register).")] = "",
) -> None:
    """Revoke a permit: hospitals refuse the next round (Article 63(3))."""
    moment = _register(state).revoke(permit_id, _now(), reason)
    data = {"permit_id": permit_id, "revoked_at": moment.isoformat()}
    output.emit("permit revoke", data, f"permit {permit_id} is revoked since {moment:%Y-%m-%d %H:%M:%S} UTC")


@app.command("show")
@output.command("permit show")
def show(
    file: Annotated[Path, typer.Argument(help="A permit (JWT).")],
    issuer: Annotated[Path | None, typer.Option(help="The issuer's public key, to verify the signature.")] = None,
) -> None:
    """Show a permit; with --issuer, verify its signature first."""
    from vht_federate.domain.permit import Permit
    from vht_federate.permits.check import read_permit

    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file.name}", code="VHT-INPUT-PERMIT") from error
    permit = read_permit(token, PublicKey.read(issuer)) if issuer else Permit.from_claims(unverified_claims(token))
    word = "verified" if issuer else "NOT VERIFIED (give --issuer)"
    data = {"verified": issuer is not None, "permit": permit.claims()}
    output.emit("permit show", data, _table(permit), f"signature: {word}")


@app.command("list")
@output.command("permit list")
def list_permits(state: State) -> None:
    """List the register."""
    from vht_federate.authority.store import public_record

    now = _now()
    records = [public_record(item, now) for item in _register(state).permits()]
    columns = ("permit_id", "state", "controller", "expires_at")
    rows = [[record[column] for column in columns] for record in records]
    output.emit("permit list", {"permits": records}, output.table("Permits", ["permit", *columns[1:]], rows))


def _table(permit: "Permit") -> Any:
    rows = [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else value)
        for name, value in permit.claims().items()
        if name != "data_users"
    ]
    users = [("data user", f"{user.name} ({user.kind}), key {user.kid}") for user in permit.data_users]
    return output.table(f"Permit {permit.permit_id}", ["field", "value"], [*rows, *users])
