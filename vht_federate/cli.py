"""The command ``vht``: a root that finds its sub-commands through the entry-point group ``vht.commands``.

Each entry point is a ``typer.Typer`` (a group of commands) or a plain function (one command). The ground never
imports what stands on it; a package that is not installed is simply not listed. Sub-commands are imported only
when named, so that ``vht node status`` never pays for torch or SDV.
"""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

import click
import typer
from typer.core import TyperArgument, TyperGroup
from typer.main import get_command
from typer.models import ArgumentInfo
from typer.utils import get_params_from_function

from vht_federate.errors import InputError, VhtError
from vht_federate.output import fail, interrupted, json_mode, set_json_mode

__all__ = ["app", "main"]

GROUP = "vht.commands"
SUMMARIES = {
    "audit": "Verify evidence offline; build trust files.",
    "component": "List, show and digest twin components.",
    "coordinator": "Run a coordinator: SuperLink, executor, gateway.",
    "data": "Generate or import FHIR cohorts.",
    "demo": "Four hospitals, end to end, on this machine.",
    "node": "Run one hospital's connector.",
    "permit": "Issue, revoke and show data permits.",
    "pki": "Make a certificate authority and TLS certificates.",
    "platform": "Run the central platform.",
    "privacy": "Audit the privacy engine; see the audit fail on a broken one.",
    "study": "Plan, run and publish a study.",
    "view": "Check, run and explain SQL on FHIR v2 views.",
}


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _load(name: str, point: EntryPoint) -> click.Command:
    loaded = point.load()
    if isinstance(loaded, typer.Typer):
        command = get_command(loaded)
    else:
        single = typer.Typer(add_completion=False)
        single.command(name=name)(loaded)
        command = get_command(single)
    command.name = name
    _help_of_arguments(command)
    if json_mode():
        _miss_commands(command)
    return command


def _miss_commands(command: click.Command) -> None:
    """A group named without one of its commands is then an error, where people are shown the group's help."""
    if isinstance(command, click.Group):
        command.no_args_is_help = False
        for subcommand in command.commands.values():
            _miss_commands(subcommand)


def _help_of_arguments(command: click.Command) -> None:
    """Typer 0.20 sets an argument's help before Click 8.5, which came to know it later, empties it: set it again."""
    for subcommand in command.commands.values() if isinstance(command, click.Group) else ():
        _help_of_arguments(subcommand)
    declared = get_params_from_function(inspect.unwrap(command.callback)) if command.callback else {}
    for parameter in command.params:
        info = declared[parameter.name].default if parameter.name in declared else None
        if isinstance(parameter, TyperArgument) and isinstance(info, ArgumentInfo):
            parameter.help = parameter.help or info.help


class _Commands(TyperGroup):
    """Sub-commands from entry points, loaded when named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(_points())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        point = _points().get(cmd_name)
        return _load(cmd_name, point) if point else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES.get(name, "")) for name in self.list_commands(ctx)])

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        click.Group.format_help(self, ctx, formatter)


app = typer.Typer(cls=_Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(value: bool) -> None:
    if value:
        print(version("vht-federate"))
        raise typer.Exit


@app.callback()
def root(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON envelope instead of tables.")] = False,
    show_version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,  # noqa: ARG001
) -> None:
    """Train virtual human twin components across hospitals; no row leaves a hospital."""
    set_json_mode(as_json)


def main() -> Any:
    """Console entry point. ``--json`` may stand anywhere on the line."""
    arguments = sys.argv[1:]
    if "--json" in arguments:
        set_json_mode(True)
        arguments = [argument for argument in arguments if argument != "--json"]
    try:
        return _run(arguments)
    except VhtError as error:  # an error outside a decorated command
        return _leave(partial(fail, "vht", error))
    except KeyboardInterrupt:
        return _leave(partial(interrupted, "vht"))


def _run(arguments: list[str]) -> Any:
    """In JSON mode nothing but envelopes may reach stdout: Click's own words for people stay out."""
    if not json_mode() or "--help" in arguments:
        return app(args=arguments, prog_name="vht")
    root_command = get_command(app)
    _miss_commands(root_command)
    try:
        with root_command.make_context("vht", arguments) as context:
            return root_command.invoke(context)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        return _usage(error)
    except click.Abort:
        raise KeyboardInterrupt from None


def _usage(error: click.ClickException) -> None:
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "vht"
    usage_error = InputError(error.format_message(), code="VHT-INPUT-USAGE", hint=f"{path} --help")
    _leave(partial(fail, path.removeprefix("vht ").strip(), usage_error))


def _leave(say: Callable[[], None]) -> None:
    try:
        say()
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
