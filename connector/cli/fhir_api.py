"""The part of ``vht node`` that is about the local FHIR API: its clients, and the log of their accesses."""

from pathlib import Path
from typing import Annotated, Any

import typer

from connector.cli.node_access import State, alone, connect, running
from vht_federate import output
from vht_federate.errors import InputError

__all__ = ["app"]

app = typer.Typer(add_completion=False)
clients = typer.Typer(no_args_is_help=True, help="Programs inside the hospital that may use the local FHIR API.")
app.add_typer(clients, name="client")

Operator = Annotated[str | None, typer.Option("--operator", help="Your account's name, for the evidence log.")]
_COLUMNS = ["client", "name", "scope", "permit_id", "permit_expires_at", "used_at", "revoked_at"]


def _table(title: str, records: list[dict[str, Any]]) -> Any:
    return output.table(title, _COLUMNS, [[record[name] for name in _COLUMNS] for record in records])


@clients.command("add")
@output.command("node client add")
def add(
    state: State,
    name: Annotated[str, typer.Option(help="What the program is called, for people.")],
    permit: Annotated[Path, typer.Option(help="The permit under which it may read (JWT).", exists=True)],
    scope: Annotated[str, typer.Option(help="At most this: system/*.rs, or system/TYPE.rs …")] = "system/*.rs",
    jwks: Annotated[Path | None, typer.Option(help="Its public keys (JWKS), or", exists=True)] = None,
    jku: Annotated[str | None, typer.Option(help="the https address of its public keys.")] = None,
    operator: Operator = None,
) -> None:
    """Register a client: whatever it asks, it sees what its permit allows, de-identified."""
    from connector.fhir_api.client_keys import read_keys

    keys = read_keys(jwks.read_bytes()) if jwks else None
    token = permit.read_text().strip()
    if (keys is None) == (jku is None):
        raise InputError("name either --jwks or --jku", code="VHT-INPUT-CLIENT")
    if running(state):
        body = {"name": name, "permit": token, "scope": scope, "jwks": keys, "jku": jku, "operator": operator}
        with connect(state) as client:
            data = dict(client.post("/api/fhir-clients", json=body))
            base = client.get("/api/fhir-clients")["base"]
    else:
        data, base = alone(state, lambda node: _added(node, name, token, scope, keys, jku, operator))
    data = {**data, "base": base}
    output.emit("node client add", data, output.table(f"Client {name}", ["what", ""], data.items()))


def _added(
    node: Any, name: str, token: str, scope: str, keys: dict[str, Any] | None, jku: str | None, operator: str | None
) -> tuple[dict[str, Any], str]:
    actor = _actor(node, operator)
    return node.fhir_api.clients.add(name, token, scope, actor, jwks=keys, jku=jku), node.fhir_api.base


def _actor(node: Any, operator: str | None) -> Any:
    from connector.governance.operator_accounts import system_user

    return node.accounts.as_operator(system_user(), operator).require_approver()


@clients.command("list")
@output.command("node client list")
def listed(state: State) -> None:
    """List the clients, newest first, with what each may read and when it last did."""
    if running(state):
        with connect(state) as client:
            records = list(client.get("/api/fhir-clients")["clients"])
    else:
        records = alone(state, lambda node: node.fhir_api.clients.all())
    output.emit("node client list", {"clients": records}, _table("Clients of the local FHIR API", records))


@clients.command("revoke")
@output.command("node client revoke")
def revoke(
    state: State,
    client: Annotated[str, typer.Argument(help="Id of the client (vht node client list).")],
    operator: Operator = None,
) -> None:
    """End a client's access at once: its tokens open nothing, its exports go."""
    if running(state):
        with connect(state) as node:
            data = dict(node.post(f"/api/fhir-clients/{client}/revoke", json={"operator": operator}))
    else:
        data = alone(state, lambda node: node.fhir_api.clients.revoke(client, _actor(node, operator)))
    output.emit("node client revoke", data, f"client {data['name']} is revoked")


@app.command("audit-events")
@output.command("node audit-events")
def audit_events(
    state: State,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many, newest first.")] = 50,
    client: Annotated[str | None, typer.Option(help="Of one client.")] = None,
    refused: Annotated[bool, typer.Option("--refused", help="Refusals alone.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="As FHIR AuditEvents (with --json).")] = False,
) -> None:
    """Show who read what over the local FHIR API."""
    query: dict[str, Any] = {"count": count, "refused": refused, "raw": raw} | ({"client": client} if client else {})
    if running(state):
        with connect(state) as node:
            events = list(node.request("GET", "/api/audit-events", params=query).json()["events"])
    else:
        events = alone(state, lambda node: _newest(node, query))
    tables = [] if raw else [_events_table(events)]
    output.emit("node audit-events", {"events": events}, *tables)


def _newest(node: Any, query: dict[str, Any]) -> list[dict[str, Any]]:
    from connector.fhir_api.administration import newest_events

    return newest_events(node.fhir_api, **query)


def _events_table(events: list[dict[str, Any]]) -> Any:
    columns = ["recorded", "client_name", "what", "query", "resource", "count", "code"]
    return output.table("Accesses", columns, [[event[name] for name in columns] for event in events])
