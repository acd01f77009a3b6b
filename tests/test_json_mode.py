"""``vht --json``: whatever happens, stdout is one envelope, and the exit code is the documented one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from vht_federate import cli, output

VHT = str(Path(sys.executable).parent / "vht")


@pytest.fixture(autouse=True)
def people_again() -> Iterator[None]:
    output._json_mode.set(False)
    yield
    output._json_mode.set(False)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """``vht`` with ``arguments``: exit code and stdout."""
    monkeypatch.setattr(sys, "argv", ["vht", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code, capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "command", "words"),
    [
        (("node", "status"), "node status", "'STATE'"),
        (("nosuch",), "vht", "'nosuch'"),
        (("node", "nosuch"), "node", "'nosuch'"),
        (("data", "generate", "--patients", "abc"), "data generate", "--patients"),
        (("node", "status", "--nosuch"), "node status", "--nosuch"),
        ((), "vht", "command"),
        (("node",), "node", "command"),
        (("node", "client"), "node client", "command"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_usage_error_is_one_envelope(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    command: str,
    words: str,
    first: bool,
) -> None:
    line = ("--json", *arguments) if first else (*arguments, "--json")
    code, out = run(monkeypatch, capsys, *line)
    envelope = json.loads(out)
    assert code == 2
    assert (envelope["command"], envelope["ok"]) == (command, False)
    assert envelope["error"]["code"] == "VHT-INPUT-USAGE"
    assert words in envelope["error"]["message"]
    assert envelope["error"]["hint"] == f"{f'vht {command}'.replace('vht vht', 'vht')} --help"


def test_without_json_a_usage_error_is_words_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = run(monkeypatch, capsys, "node", "status")
    assert (code, out) == (2, "")


def test_what_a_command_says_reaches_json_mode_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out = run(monkeypatch, capsys, "--json", "node", "status", str(tmp_path))
    assert (code, json.loads(out)["error"]["code"]) == (2, "VHT-INPUT-CONFIG")
    monkeypatch.setattr(sys, "argv", ["vht", "--json", "component", "list"])
    cli.main()
    assert json.loads(capsys.readouterr().out)["ok"]


@pytest.mark.parametrize("inside", [True, False])
def test_ctrl_c_is_one_envelope(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, inside: bool
) -> None:
    def interrupt(*_: Any, **__: Any) -> NoReturn:
        raise KeyboardInterrupt

    if inside:
        monkeypatch.setattr("connector.cli.node.NodeSettings.read", interrupt)
    else:
        monkeypatch.setattr(cli, "_load", interrupt)
    code, out = run(monkeypatch, capsys, "--json", "node", "status", str(tmp_path))
    envelope = json.loads(out)
    assert code == 130
    assert (envelope["command"], envelope["ok"]) == ("node status" if inside else "vht", False)
    assert envelope["error"]["code"] == "VHT-INTERRUPTED"


def test_ctrl_c_without_json_leaves_stdout_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupt(*_: Any, **__: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("connector.cli.node.NodeSettings.read", interrupt)
    assert run(monkeypatch, capsys, "node", "status", str(tmp_path)) == (130, "")


def test_the_installed_command_keeps_its_words_off_stdout() -> None:
    completed = subprocess.run([VHT, "--json", "node"], capture_output=True, text=True)
    assert completed.returncode == 2
    assert json.loads(completed.stdout)["error"]["code"] == "VHT-INPUT-USAGE"


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word(tmp_path: Path, arguments: list[str]) -> None:
    """``vht … | head``: the pipe is closed before the command has written, and again while it writes."""
    many = "".join(f"x{number} = {number}" + chr(10) for number in range(20_000))  # more than a pipe holds
    program = (
        "import os, sys; from vht_federate import output; import typer; reading, writing = os.pipe(); "
        "os.dup2(writing, 1); os.close(writing); os.close(reading); output.set_json_mode('--json' in sys.argv)\n"
        "app = typer.Typer()\n"
        "@app.command()\n@output.command('test')\n"
        "def test(): output.emit('test', {'words': sys.stdin.read()}, *(['a word'] * 9_000))\n"
        "app(args=[])\n"
    )
    command = [sys.executable, "-c", program, *arguments]
    for words in ("few", many):
        completed = subprocess.run(command, input=words, capture_output=True, text=True, cwd=tmp_path)
        assert (completed.returncode, completed.stderr) == (141, "")
