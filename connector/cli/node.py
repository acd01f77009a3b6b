"""``vht node``: run one hospital's connector. Commands talk to the running node, or open its directory themselves."""

import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from connector.cli.codes import app as codes
from connector.cli.fhir_api import app as api
from connector.cli.intake import app as intake
from connector.cli.ledger import app as ledger
from connector.cli.node_access import State, connect, running
from connector.cli.output_tables import (
    budget_table,
    connection_lines,
    isolation_line,
    sources_table,
    visit_tables,
    visits_table,
)
from connector.cli.quality import app as quality
from connector.cli.sources import app as sources
from connector.settings import CoordinatorSettings, DatasetSettings, NodeFiles, NodeSettings
from vht_federate import output
from vht_federate.domain.isolation import IsolationLevel
from vht_federate.domain.law import DataCategory
from vht_federate.errors import InputError
from vht_federate.processes import PidFile, stop_process
from vht_federate.serving import await_ready
from vht_federate.tcp_ports import LOOPBACK, free_ports
from vht_federate.text import counted

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Run one hospital's connector.")

Visit = Annotated[str, typer.Argument(help="Id of the visit (vht node visits).")]
Operator = Annotated[str, typer.Option("--operator", help="Your account's name, for the evidence log.")]


def _categories(words: list[str]) -> tuple[DataCategory, ...]:
    try:
        return tuple(DataCategory(word) for part in words for word in part.split(","))
    except ValueError as error:
        allowed = ", ".join(DataCategory)
        raise InputError("a category is a point of Article 51(1)", code="VHT-INPUT-CATEGORY", hint=allowed) from error


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
    host: Annotated[str, typer.Option(help="Outward address, for coordinators.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Outward port; 0 chooses one.")] = 0,
    internal_host: Annotated[str, typer.Option(help="Internal address, for operators only.")] = "127.0.0.1",
    internal_port: Annotated[int, typer.Option(help="Internal port; 0 chooses one.")] = 0,
    supernode_port: Annotated[
        int, typer.Option(help="Port of the SuperNode on this machine alone; 0 chooses one.")
    ] = 0,
    database: Annotated[str | None, typer.Option(help="Database URL; SQLite in the directory by default.")] = None,
    components: Annotated[list[Path] | None, typer.Option(help="Folder of components to install beside.")] = None,
    enclave_isolation: Annotated[
        IsolationLevel, typer.Option(help="No enclave starts below it; a weaker one at your own risk.")
    ] = IsolationLevel.SANDBOX,
) -> None:
    """Make a node's state directory: keys, configuration, database. Again: keeps every key."""
    from connector.provision import provision

    described = {"id": dataset, "categories": _categories(categories)} | ({"title": title} if title else {})
    given_ports = (port, internal_port, supernode_port)
    hosts = zip((host, internal_host, LOOPBACK), given_ports, strict=True)
    drawn_ports = iter(free_ports(*[name for name, given in hosts if not given], besides=given_ports))
    outward, internal, loopback = (given or next(drawn_ports) for given in given_ports)
    fleet = None
    if coordinator is not None:
        ca_path = (coordinator_ca or ca).resolve()
        fleet = CoordinatorSettings(address=coordinator, ca=ca_path, supernode_port=loopback)
    settings = NodeSettings(
        name=name,
        host=host,
        port=outward,
        internal_host=internal_host,
        internal_port=internal,
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
        enclave_isolation=enclave_isolation,
    )
    data = provision(state, settings, issuer_key)
    output.emit("node init", data, output.table(f"Node {name}", ["what", "where"], data.items()))


@app.command("serve")
@output.command("node serve")
def serve(state: State) -> None:
    """Run the node in the foreground until Ctrl-C or 'vht node stop'."""
    from connector.listeners.serve import run_node

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
def status(
    state: State,
    wait: Annotated[float, typer.Option(help="Seconds to wait until it answers; exit code 5 where it does not.")] = 0.0,
) -> None:
    """Show visits, budget and processes; also of a node that does not run."""
    settings = NodeSettings.read(state)
    pid_file = PidFile(NodeFiles(state).pid)
    await_ready(
        lambda: pid_file.listens(settings.port, settings.internal_port),
        wait_s=wait,
        what=f"node {settings.name}",
    )
    if running(state):
        with connect(state) as client:
            data = client.get("/api/status")
    else:
        data = _offline_status(state)
    word = "running" if data["running"] else "not running"
    counts = ", ".join(f"{count} {state}" for state, count in data["visits"].items()) or "none"
    tables = [budget_table(data["budget"])] + ([sources_table(data["sources"])] if data["sources"] else [])
    first = f"node {data['name']} is {word}; visits: {counts}"
    output.emit("node status", data, first, *connection_lines(data), isolation_line(data["isolation"]), *tables)


@app.command("isolation")
@output.command("node isolation")
def isolation() -> None:
    """Show how firmly this machine closes an enclave off, and what it lacks of a sandbox."""
    from connector.enclave.isolation_probe import offered_isolation

    offered = offered_isolation()
    rows = [("level", offered.level), ("walls", ", ".join(offered.walls)), *(("missing", m) for m in offered.missing)]
    output.emit("node isolation", offered.as_dict(), output.table("Enclaves on this machine", ["what", ""], rows))


def _offline_status(state: Path) -> dict[str, Any]:
    from connector.enclave.isolation_probe import offered_isolation
    from connector.node import isolation_status
    from connector.overview import Overview
    from connector.pulls.installed_sources import Sources
    from connector.store.node_database import open_database

    settings, files = NodeSettings.read(state), NodeFiles(state)
    database = open_database(settings, files)
    try:
        overview = Overview(settings, files, database)
        states = [visit["state"] for visit in overview.visits()]
        return {
            "name": settings.name,
            "running": False,
            "outward": settings.outward_url,
            "internal": settings.internal_url,
            "visits": {visit_state: states.count(visit_state) for visit_state in sorted(set(states))},
            "isolation": isolation_status(settings, offered_isolation()),
            "sources": Sources(files.sources).described(),
            "budget": overview.budget(),
        }
    finally:
        database.close()


@app.command("visits")
@output.command("node visits")
def visits(state: State) -> None:
    """List the visits of studies, newest first."""
    with connect(state) as client:
        data = client.get("/api/visits")
    output.emit("node visits", data, visits_table(data["visits"]))


@app.command("show")
@output.command("node show")
def show(state: State, visit: Visit) -> None:
    """Show one visit: who asks for what under which permit, what it would cost, what has left."""
    with connect(state) as client:
        data = client.get(f"/api/visits/{visit}")
    output.emit("node show", data, *visit_tables(data))


@app.command("approve")
@output.command("node approve")
def approve(
    state: State,
    visit: Visit,
    operator: Operator,
    despite_outcome: Annotated[
        bool,
        typer.Option("--despite-outcome", help="Even if nobody has the outcome, or the evaluation could say nothing."),
    ] = False,
) -> None:
    """Approve a visit: reserve its budget, read the cohort, start its enclave."""
    _decide(state, visit, "approve", {"operator": operator, "despite_outcome": despite_outcome})


@app.command("reject")
@output.command("node reject")
def reject(
    state: State, visit: Visit, operator: Operator, reason: Annotated[str, typer.Option(help="Why.")] = ""
) -> None:
    """Reject a visit that waits for a decision."""
    _decide(state, visit, "reject", {"operator": operator, "reason": reason})


@app.command("halt")
@output.command("node halt")
def halt(
    state: State,
    visit: Visit,
    operator: Operator,
    reason: Annotated[str, typer.Option(help="Why, for the coordinator to read.")] = "",
) -> None:
    """Stop a visit at once: nothing more is drawn, nothing more leaves."""
    _decide(state, visit, "stop", {"operator": operator, "reason": reason}, command="halt")


def _decide(state: Path, visit: str, verb: str, body: dict[str, Any], *, command: str | None = None) -> None:
    with connect(state) as client:
        data = client.post(f"/api/visits/{visit}/{verb}", json=body)
    output.emit(f"node {command or verb}", data, f"visit {visit} is {data['state']}")


@app.command("console")
@output.command("node console")
def console(
    state: State,
    operator: Annotated[str | None, typer.Option(help="Under which account you act there.")] = None,
) -> None:
    """Print a link that logs you in to the console, once."""
    with connect(state) as client:
        data = client.post("/api/log-in-links", json={"operator": operator})
    output.emit("node console", data, f"{data['url']}\n(opens one session, within {data['minutes']} minutes)")


@app.command("operator")
@output.command("node operator")
def operator(
    state: State,
    name: Annotated[str, typer.Argument(help="The operator's name.")],
    role: Annotated[
        str | None, typer.Option(help="viewer or approver; else an account keeps its role, and a new one may look.")
    ] = None,
    password_file: Annotated[Path | None, typer.Option(help="File with the password; asked for by default.")] = None,
) -> None:
    """Make an operator's account, or give one a new password and role."""
    from connector.governance.operator_accounts import Accounts, Role
    from connector.node import utc_now
    from connector.store.node_database import open_database

    if role not in (None, "viewer", "approver"):
        raise InputError("a role is viewer or approver", code="VHT-INPUT-OPERATOR")
    settings, files = NodeSettings.read(state), NodeFiles(state)
    password = (
        password_file.read_text().strip()
        if password_file
        else typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    )
    asked: Role | None = None if role is None else "approver" if role == "approver" else "viewer"
    database = open_database(settings, files)
    try:
        kept = Accounts(database, secrets.token_hex(32), utc_now).add(name, asked, password)
    finally:
        database.close()
    output.emit("node operator", {"name": name, "role": kept}, f"{name} may log in as {kept}")


@app.command("backup")
@output.command("node backup")
def backup(
    state: State, archive: Annotated[Path, typer.Argument(help="Archive to write (.tar.gz), for its owner alone.")]
) -> None:
    """Write an archive of a node that rests, with the files outside its directory that it needs."""
    from connector.backup import back_up
    from vht_federate.files import private_files

    settings, files = NodeSettings.read(state), NodeFiles(state)
    with private_files(state), PidFile(files.pid):
        made = back_up(settings, files, archive)
    data = {
        "archive": str(made.archive),
        "files": made.files,
        "beside": [str(path) for path in made.beside],
        "database_left_out": made.database,
    }
    words = f"{made.archive}: {counted(made.files, 'file')}; restore with: tar -xzpf {archive.name} -C /"
    notes = [f"not in it: the database {made.database}, to be backed up beside it"] if made.database else []
    output.emit("node backup", data, words, *notes)


for commands in (intake, sources, quality, api, ledger):  # they stand beside these
    app.add_typer(commands)
app.add_typer(codes, name="codes")
