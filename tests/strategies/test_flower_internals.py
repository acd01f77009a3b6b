"""Flower promises ``flwr.app``, ``flwr.clientapp`` and ``flwr.serverapp``; what we use beyond may change any day.

Each adapter to Flower's internals names the version that it was read against and the internals that it stands on. An
upgrade of Flower fails here first: ``docs/development/upgrades.md`` says what to look at before the version goes up.
"""

import ast
import importlib
import inspect
import tomllib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pytest
from kit.places import ROOT

PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp")
CLIENT = ("server_address", "insecure", "root_certificates", "interceptors", "retry_invoker")


@dataclass(frozen=True)
class Adapter:
    """A module of ours: the Flower it fits, and the parameters of each internal it calls (None: no function)."""

    fits: str
    uses: dict[str, tuple[str, ...] | None] = field(default_factory=dict)


ADAPTERS = {
    "strategies/superlink.py": Adapter(
        "1.42.0",
        {
            "flwr.cli.build.build_fab_from_disk": ("app",),
            "flwr.common.serde.fab_to_proto": ("fab",),
            "flwr.common.serde.user_config_to_proto": ("user_config",),
            "flwr.proto.control_pb2.ListNodesRequest": None,
            "flwr.proto.control_pb2.ListRunsRequest": None,
            "flwr.proto.control_pb2.RegisterNodeRequest": None,
            "flwr.proto.control_pb2.StartRunRequest": None,
            "flwr.proto.control_pb2.StopRunRequest": None,
            "flwr.supercore.control.ControlHttpClient": None,
            "flwr.supercore.control.ControlHttpClient.from_server_address": CLIENT,
            "flwr.supercore.fab.Fab": ("hash_str", "content", "verifications"),
            "flwr.supercore.interceptors.RuntimeVersionHttpInterceptor": ("component_name",),
            "flwr.supercore.primitives.asymmetric.public_key_to_bytes": ("public_key",),
        },
    ),
    "strategies/warm_executor.py": Adapter(
        "1.42.0",
        {
            "flwr.common.constant.ErrorCode": None,
            "flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION": None,
            "flwr.common.constant.SubStatus": None,
            "flwr.proto.runtime_pb2.SendTaskHeartbeatRequest": None,
            "flwr.supercore.constant.TaskType": None,
            "flwr.supercore.constant.TaskType.CLIENT_APP": None,
            "flwr.supercore.heartbeat.HeartbeatSender": ("heartbeat_fn",),
            "flwr.supercore.interceptors.RuntimeTokenHttpInterceptor": ("token",),
            "flwr.supercore.runtime.RuntimeHttpClient": None,
            "flwr.supernode.runtime.run_clientapp.pull_task_input": ("client",),
            "flwr.supernode.runtime.run_clientapp.push_message": ("client", "message", "context"),
            "flwr.supernode.runtime.run_clientapp.push_task_output": ("client", "context", "sub_status", "details"),
        },
    ),
    "strategies/fleet_uploads.py": Adapter(
        "1.42.0",
        {
            "flwr.supercore.primitives.asymmetric.bytes_to_public_key": ("public_key_bytes",),
            "flwr.supercore.primitives.asymmetric.verify_signature": ("public_key", "message", "signature"),
        },
    ),
    "strategies/runtime_tasks.py": Adapter(
        "1.42.0",
        {
            "flwr.proto.runtime_pb2.AcquireTaskRequest": None,
            "flwr.supercore.constant.TaskType": None,
            "flwr.supercore.interceptors.RuntimeTokenHttpInterceptor": ("token",),
            "flwr.supercore.interceptors.RuntimeVersionHttpInterceptor": ("component_name",),
            "flwr.supercore.interceptors.SuperExecAuthHttpInterceptor": ("master_secret", "protected_methods"),
            "flwr.supercore.retry.RetryInvoker": (
                "wait_gen_factory", "recoverable_exceptions", "max_tries", "max_time", "on_success", "on_backoff",
                "on_giveup", "jitter", "should_giveup", "wait_function",
            ),
            "flwr.supercore.retry.exponential": ("base_delay", "multiplier", "max_delay"),
            "flwr.supercore.runtime.RuntimeHttpClient": None,
            "flwr.supercore.runtime.RuntimeHttpClient.from_server_address": CLIENT,
        },
    ),
    "strategies/superlink_socket.py": Adapter(
        "1.42.0",
        {
            "flwr.supercore.protobuf.client.ProtobufClient": None,
            "flwr.supercore.protobuf.client.ProtobufClient.close": ("self",),
        },
    ),
    "strategies/superlink_process.py": Adapter(
        "1.42.0",
        {
            "flwr.common.constant.ISOLATION_MODE_PROCESS": None,
            "flwr.common.constant.TRANSPORT_TYPE_GRPC_RERE": None,
            "flwr.supercore.http_logging.get_uvicorn_log_config": ("log_level",),
            "flwr.supercore.logger.console_handler": None,
            "flwr.superlink.cli.flower_superlink.SuperLinkLifespan": ("config", "state_factory"),
            "flwr.superlink.config_loader.SuperLinkLifespanConfig": (
                "control_address", "health_server_address", "host", "port", "insecure", "certificates",
                "superexec_auth_secret", "authn_plugin", "event_log_plugin", "fleet_event_log_plugin",
                "enable_event_log", "artifact_provider", "enable_supernode_auth", "fleet_api_type",
                "fleet_api_address", "simulation", "ssl_ca_certfile", "ssl_certfile", "ssl_keyfile", "database",
                "isolation", "runtime_dependency_install",
            ),
            "flwr.superlink.config_loader.load_control_authn_plugin": (),
            "flwr.superlink.main.create_app": ("config", "superlink_lifespan_class"),
        },
    ),
    "strategies/server_executor.py": Adapter(
        "1.42.0",
        {
            "flwr.common.constant.SubStatus": None,
            "flwr.proto.runtime_pb2.PushTaskOutputRequest": None,
            "flwr.supercore.constant.TaskType": None,
            "flwr.supercore.constant.TaskType.SERVER_APP": None,
            "flwr.supercore.interceptors.RuntimeTokenHttpInterceptor": ("token",),
        },
    ),
    "strategies/server_process.py": Adapter(
        "1.42.0",
        {
            "flwr.common.constant.SubStatus": None,
            "flwr.common.serde.context_from_proto": ("context_proto",),
            "flwr.common.serde.context_to_proto": ("context",),
            "flwr.common.serde.run_from_proto": ("run_proto",),
            "flwr.proto.runtime_pb2.PullTaskInputRequest": None,
            "flwr.proto.runtime_pb2.PushTaskOutputRequest": None,
            "flwr.supercore.heartbeat.HeartbeatSender": ("heartbeat_fn",),
            "flwr.supercore.heartbeat.make_task_heartbeat_fn_http": ("client",),
            "flwr.supercore.task_identity.TaskIdentity": None,
            "flwr.supercore.task_identity.TaskIdentity._task_id": None,
            "flwr.supercore.task_identity.TaskIdentity._run_id": None,
            "flwr.supercore.task_identity.TaskIdentity._node_id": None,
            "flwr.superlink.grid.http_grid.HttpGrid": None,
            "flwr.superlink.grid.http_grid.HttpGrid._connect": ("self",),
            "flwr.superlink.grid.http_grid.HttpGrid._runtime_client": None,
        },
    ),
    "strategies/server_app.py": Adapter(
        "1.42.0",
        {
            "flwr.superlink.grid.http_grid.HttpGrid": None,
            "flwr.superlink.grid.http_grid.HttpGrid.__init__": (
                "self", "runtime_api_address", "insecure", "root_certificates", "token",
            ),
        },
    ),
    "strategies/phase.py": Adapter(
        "1.42.0",
        {
            "flwr.common.constant.ErrorCode": None,
            "flwr.common.constant.ErrorCode.MESSAGE_UNAVAILABLE": None,
            "flwr.common.constant.ErrorCode.REPLY_MESSAGE_UNAVAILABLE": None,
            "flwr.supercore.inflatable.inflatable_utils.ObjectPushError": ("object_id", "run_id", "session_id"),
            "flwr.superlink.grid.http_grid.HttpGrid": None,
            "flwr.superlink.grid.http_grid.HttpGrid.push_messages": ("self", "messages"),
        },
    ),
    "strategies/grid_replies.py": Adapter(
        "1.42.0",
        {
            "flwr.proto.message_pb2.ConfirmMessageReceivedRequest": None,
            "flwr.proto.message_pb2.Message": None,
            "flwr.proto.message_pb2.ObjectTree": None,
            "flwr.proto.runtime_pb2.PullAppMessagesRequest": None,
            "flwr.supercore.inflatable.inflatable_object.iterate_object_tree": ("tree",),
            "flwr.supercore.inflatable.inflatable_protobuf_utils.make_pull_object_fn_protobuf": (
                "pull_object_protobuf", "node", "run_id",
            ),
            "flwr.supercore.inflatable.inflatable_utils.ObjectPullError": ("object_id", "reason"),
            "flwr.supercore.inflatable.inflatable_utils.ObjectUnavailableError": ("object_id",),
            "flwr.supercore.inflatable.inflatable_utils.inflate_object_from_contents": (
                "object_id", "object_contents", "keep_object_contents", "objects",
            ),
            "flwr.supercore.inflatable.inflatable_utils.pull_objects": (
                "object_ids", "pull_object_fn", "max_concurrent_pulls", "max_time", "max_tries_per_object",
                "initial_backoff", "backoff_cap",
            ),
            "flwr.superlink.grid.http_grid.HttpGrid": None,
            "flwr.superlink.grid.http_grid.HttpGrid.run": None,
            "flwr.superlink.grid.http_grid.HttpGrid._runtime_client": None,
        },
    ),
    "strategies/gateway.py": Adapter(
        "1.42.0",
        {
            "flwr.proto.fleet_pb2.PullMessagesResponse": None,
            "flwr.proto.fleet_pb2.PushMessagesRequest": None,
            "flwr.proto.message_pb2.PushObjectResponse": None,
        },
    ),
    # The command line of Flower's program, which the federation tests run.
    "connector/supernode.py": Adapter("1.42.0"),
}  # fmt: skip


def _internals_of(path: Path) -> set[str]:
    """What a module imports of Flower beyond its public packages, anywhere in it."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            if node.module not in PUBLIC:
                imported |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            imported |= {name.name for name in node.names if name.name.split(".")[0] == "flwr"}
    return imported


def _resolved(name: str) -> object:
    """The object behind a dotted name, of which a first part is a module."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise AssertionError(f"{name} does not exist")


@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_each_adapter_fits_the_flower_that_is_installed(adapter: str) -> None:
    assert ADAPTERS[adapter].fits == version("flwr"), "read docs/development/upgrades.md before you change the number"


def test_the_pin_the_constraints_and_the_app_name_the_same_flower() -> None:
    installed = version("flwr")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    app = tomllib.loads((ROOT / "strategies" / "flower_app" / "pyproject.toml").read_text())
    assert project["optional-dependencies"]["federation"] == [f"flwr=={installed}"]
    assert f"flwr=={installed}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert app["tool"]["flwr"]["app"]["flwr-version-target"] == installed


def test_no_module_uses_an_internal_of_flower_that_is_not_in_the_table() -> None:
    internals_by_path = {}
    for package in ("vht_federate", "connector", "strategies", "synth", "deploy"):
        for path in (ROOT / package).rglob("*.py"):
            if internals := _internals_of(path):
                internals_by_path[path.relative_to(ROOT).as_posix()] = internals
    for adapter, internals in internals_by_path.items():
        assert internals <= set(ADAPTERS[adapter].uses), adapter
    for adapter, entry in ADAPTERS.items():
        unused = {name for name in entry.uses if not any(name.startswith(used) for used in internals_by_path[adapter])}
        assert not unused, adapter


@pytest.mark.parametrize(
    ("name", "parameters"),
    sorted({(name, parameters) for entry in ADAPTERS.values() for name, parameters in entry.uses.items()}, key=str),
)
def test_the_internals_of_flower_are_there_and_are_called_as_they_want(
    name: str, parameters: tuple[str, ...] | None
) -> None:
    value = _resolved(name)
    if parameters is not None:
        assert callable(value)
        assert tuple(inspect.signature(value).parameters) == parameters
