"""``vht node``: run one hospital's connector. Commands talk to the running node, or open its directory themselves."""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from connector.settings import CoordinatorSettings, DatasetSettings, NodeFiles, NodeSettings
from vht_federate import output
from vht_federate.client import Client
from vht_federate.domain.law import DataCategory
from vht_federate.errors import InputError, UnavailableError
from vht_federate.processes import PidFile, stop_process
from vht_federate.serving import free_port

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Run one hospital's connector.")

State = Annotated[Path, typer.Argument(help="State directory of the node.")]
Visit = Annotated[str, typer.Argument(help="Id of the visit (vht node visits).")]
Operator = Annotated[str, typer.Option("--operator", help="Your name, for the evidence log.")]
LONG_S = 3600.0


def _running(state: Path) -> bool:
    NodeSettings.read(state)
    return PidFile(NodeFiles(state).pid).running() is not None


def _client(state: Path) -> Client:
    """The running node's internal API. Raises UnavailableError VHT-UNAVAILABLE-NODE."""
    if not _running(state):
        raise UnavailableError(
            "this node is not running", code="VHT-UNAVAILABLE-NODE", hint=f"start it with 'vht node serve {state}'"
        )
    settings = NodeSettings.read(state)
    try:
        token = NodeFiles(state).operator_token.read_text().strip()
    except OSError as error:
        raise InputError("the operator token cannot be read", code="VHT-INPUT-CONFIG") from error
    return Client(settings.internal_url, settings.ca, token=token, timeout_s=LONG_S)


def _alone(state: Path, act: Callable[[Any], Any]) -> Any:
    """Open the directory of a node that does not run, and keep it from starting meanwhile."""
    from connector.node import Node

    with PidFile(NodeFiles(state).pid), Node(state) as node:
        return act(node)


def _categories(words: list[str]) -> tuple[DataCategory, ...]:
    try:
        return tuple(DataCategory(word) for part in words for word in part.split(","))
    except ValueError as error:
        known = ", ".join(DataCategory)
        raise InputError("a category is a point of Article 51(1)", code="VHT-INPUT-CATEGORY", hint=known) from error


@app.command("init")
@output.command("node init")
def init(
    state: State,
    name: Annotated[str, typer.Option(help="Name of the node: lower case, digits, hyphens.")],
    certificate: Annotated[Path, typer.Option(help="TLS certificate (PEM).")],
    key: Annotated[Path, typer.Option(help="TLS key (PEM).")],
    ca: Annotated[Path, typer.Option(help="Certificate authority of issuer and operators (PEM).")],
    issuer_key: Annotated[Path, typer.Option(help="The permit issuer's public key (issuer.pub.json).")],
    issuer_url: Annotated[str, typer.Option(help="HTTPS address of the permit issuer.")],
    dataset: Annotated[str, typer.Option(help="Id of the dataset that this node holds.")],
    categories: Annotated[list[str], typer.Option(help="Data categories, Article 51(1): 51.1.a …")],
    title: Annotated[str | None, typer.Option(help="Title of the dataset.")] = None,
    epsilon_cap: Annotated[float, typer.Option(help="What one patient may ever pay, over all permits.")] = 3.0,
    delta: Annotated[float, typer.Option(help="Delta of that cap.")] = 1e-5,
    coordinator: Annotated[str | None, typer.Option(help="HOST:PORT of the coordinator's gateway.")] = None,
    coordinator_ca: Annotated[Path | None, typer.Option(help="Its certificate authority (PEM).")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Outward port; 0 chooses one.")] = 0,
    internal_port: Annotated[int, typer.Option(help="Internal port; 0 chooses one.")] = 0,
    database: Annotated[str | None, typer.Option(help="Database URL; SQLite in the directory by default.")] = None,
    components: Annotated[list[Path] | None, typer.Option(help="Folder of components to install beside.")] = None,
) -> None:
    """Make a node's state directory: keys, configuration, database. Again: keeps every key."""
    from connector.provision import provision

    described = {"id": dataset, "categories": _categories(categories)} | ({"title": title} if title else {})
    fleet = None
    if coordinator is not None:
        ca_path = (coordinator_ca or ca).resolve()
        fleet = CoordinatorSettings(address=coordinator, ca=ca_path, supernode_port=free_port())
    settings = NodeSettings(
        name=name,
        host=host,
        port=port or free_port(host),
        internal_port=internal_port or free_port(host),
        certificate=certificate.resolve(),
        key=key.resolve(),
        ca=ca.resolve(),
        issuer_url=issuer_url,
        dataset=DatasetSettings.model_validate(described),
        epsilon_cap=epsilon_cap,
        delta=delta,
        coordinator=fleet,
        database_url=database,
        component_paths=tuple(path.resolve() for path in components or ()),
    )
    data = provision(state, settings, issuer_key)
    output.emit("node init", data, output.table(f"Node {name}", ["what", "where"], data.items()))


@app.command("serve")
@output.command("node serve")
def serve(state: State) -> None:
    """Run the node in the foreground until Ctrl-C or 'vht node stop'."""
    from connector.service import run_node

    NodeSettings.read(state)

    def say(node: Any) -> None:
        output.progress(f"node {node.settings.name}: outward {node.settings.outward_url}")
        output.progress(f"  console {node.settings.internal_url} (log in with an operator account)")

    run_node(state, say)
    output.emit("node serve", {"stopped": True})


@app.command("stop")
@output.command("node stop")
def stop(state: State) -> None:
    """Stop the node that serves this directory, and everything it started."""
    NodeSettings.read(state)
    pid = PidFile(NodeFiles(state).pid).running()
    if pid is not None:
        stop_process(pid, patience_s=20.0)
    output.emit("node stop", {"stopped": pid is not None}, "stopped" if pid is not None else "was not running")


@app.command("status")
@output.command("node status")
def status(state: State) -> None:
    """Show visits, budget and processes; also of a node that does not run."""
    if _running(state):
        with _client(state) as client:
            data = client.get("/api/status")
    else:
        data = _offline_status(state)
    accounts = [
        (kind, name, one["cap"], *(f"{one[part][p]:.3f}" for part in ("spent", "reserved") for p in ("train", "test")))
        for kind in ("datasets", "permits")
        for name, one in data["budget"][kind].items()
    ]
    columns = ["account", "id", "cap", "spent train", "spent test", "reserved train", "reserved test"]
    word = "running" if data["running"] else "not running"
    output.emit("node status", data, f"node {data['name']} is {word}", output.table("Budget", columns, accounts))


def _offline_status(state: Path) -> dict[str, Any]:
    from connector.books import Books
    from connector.node import open_database

    settings, files = NodeSettings.read(state), NodeFiles(state)
    database = open_database(settings, files)
    try:
        books = Books(settings, files, database)
        states = [visit["state"] for visit in books.visits()]
        return {
            "name": settings.name,
            "running": False,
            "outward": settings.outward_url,
            "internal": settings.internal_url,
            "visits": {one: states.count(one) for one in sorted(set(states))},
            "budget": books.budget(),
        }
    finally:
        database.close()


@app.command("visits")
@output.command("node visits")
def visits(state: State) -> None:
    """List the visits of studies, newest first."""
    with _client(state) as client:
        data = client.get("/api/visits")
    rows = [(v["visit"], v["study_id"], v["state"], v["code"], v["user"], v["permit_id"]) for v in data["visits"]]
    output.emit(
        "node visits", data, output.table("Visits", ["visit", "study", "state", "code", "user", "permit"], rows)
    )


@app.command("approve")
@output.command("node approve")
def approve(state: State, visit: Visit, operator: Operator) -> None:
    """Approve a visit: reserve its budget, read the cohort, start its enclave."""
    _decide(state, visit, "approve", {"operator": operator})


@app.command("reject")
@output.command("node reject")
def reject(
    state: State, visit: Visit, operator: Operator, reason: Annotated[str, typer.Option(help="Why.")] = ""
) -> None:
    """Reject a visit that waits for a decision."""
    _decide(state, visit, "reject", {"operator": operator, "reason": reason})


@app.command("halt")
@output.command("node halt")
def halt(state: State, visit: Visit, operator: Operator) -> None:
    """Stop a visit at once: nothing more is drawn, nothing more leaves."""
    _decide(state, visit, "stop", {"operator": operator}, command="halt")


def _decide(state: Path, visit: str, verb: str, body: dict[str, Any], *, command: str | None = None) -> None:
    with _client(state) as client:
        data = client.post(f"/api/visits/{visit}/{verb}", json=body)
    output.emit(f"node {command or verb}", data, f"visit {visit} is {data['state']}")


@app.command("ingest")
@output.command("node ingest")
def ingest(state: State, folder: Annotated[Path, typer.Argument(help="Folder of FHIR R4 NDJSON.")]) -> None:
    """Take in a folder of FHIR NDJSON; every line is accounted for."""
    source = folder.resolve()
    if _running(state):
        with _client(state) as client:
            report = client.post("/api/ingest", json={"folder": str(source)})
    else:
        report = _alone(state, lambda node: node.ingest(source))
    counts = [(name, report[name]) for name in ("files", "lines", "accepted", "quarantined", "duplicate")]
    reasons = [(f"quarantined: {reason}", count) for reason, count in report["reasons"].items()]
    output.emit("node ingest", report, output.table(f"Intake of {folder}", ["what", "count"], [*counts, *reasons]))


@app.command("opt-out")
@output.command("node opt-out")
def opt_out(
    state: State,
    patient_id: Annotated[str, typer.Argument(help="Patient.id.")],
    at: Annotated[datetime | None, typer.Option(help="Since when (UTC); now by default.")] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="End the opt-out instead.")] = False,
) -> None:
    """Record a patient's opt-out (Article 71), or its withdrawal."""
    moment = (at if at.tzinfo else at.replace(tzinfo=UTC)) if at else None
    if _running(state):
        body = {"patient_id": patient_id, "at": moment.isoformat() if moment else None}
        with _client(state) as client:
            data = client.request("DELETE" if withdraw else "POST", "/api/opt-outs", json=body).json()
    elif withdraw:
        data = {"withdrawn": _alone(state, lambda node: node.withdraw_opt_out(patient_id, at=moment))}
    else:
        _alone(state, lambda node: node.opt_out(patient_id, since=moment))
        data = {"recorded": True}
    done = "no opt-out was in force" if data.get("withdrawn") is False else "withdrawn" if withdraw else "recorded"
    output.emit("node opt-out", data, done)


@app.command("operator")
@output.command("node operator")
def operator(
    state: State,
    name: Annotated[str, typer.Argument(help="The operator's name.")],
    role: Annotated[str, typer.Option(help="viewer or approver.")] = "viewer",
    password_file: Annotated[Path | None, typer.Option(help="File with the password; asked for by default.")] = None,
) -> None:
    """Make a console account, or give one a new role and password."""
    from connector.governance.actors import Accounts
    from connector.node import open_database, utc_now

    if role not in ("viewer", "approver"):
        raise InputError("a role is viewer or approver", code="VHT-INPUT-OPERATOR")
    settings, files = NodeSettings.read(state), NodeFiles(state)
    password = (
        password_file.read_text().strip()
        if password_file
        else typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    )
    database = open_database(settings, files)
    try:
        Accounts(database, secrets.token_hex(32), utc_now).add(
            name, "approver" if role == "approver" else "viewer", password
        )
    finally:
        database.close()
    output.emit("node operator", {"name": name, "role": role}, f"{name} may log in as {role}")
