"""``vht audit`` as people and programs use it."""

import contextvars
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vht_federate.cli import app
from vht_federate.evidence.trust import TrustFile
from vht_federate.testing.rehearsal import Rehearsal


def run(*arguments: str) -> tuple[int, str]:
    result = contextvars.copy_context().run(CliRunner().invoke, app, list(arguments))
    return result.exit_code, result.output


def vht(*arguments: str, code: int = 0) -> dict[str, Any]:
    exit_code, output = run("--json", *arguments)
    assert exit_code == code, output
    envelope = json.loads(output)
    answer: dict[str, Any] = envelope["data" if code == 0 else "error"]
    return answer


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with Rehearsal(tmp_path_factory.mktemp("audit"), names=("hospital-1", "hospital-2")) as rehearsal:
        rehearsal.play()
        rehearsal.bundle(rehearsal.root / "bundle")
        for name, key in rehearsal.node_keys.items():
            key.public.write(rehearsal.root / f"{name}.pub.json")
        rehearsal.issuer.public.write(rehearsal.root / "issuer.pub.json")
        rehearsal.coordinator.public.write(rehearsal.root / "coordinator.pub.json")
        yield rehearsal


@pytest.fixture
def trust(played: Rehearsal, tmp_path: Path) -> Path:
    out, root = tmp_path / "trust.json", played.root
    nodes = [part for name in played.names for part in ("--node", f"{name}={root / f'{name}.pub.json'}")]
    keys = ["--issuer", str(root / "issuer.pub.json"), "--coordinator", str(root / "coordinator.pub.json")]
    data = vht("audit", "trust", *keys, *nodes, "--out", str(out))
    assert data["keys"]["issuer"] == played.issuer.public.kid
    return out


def test_a_trust_file_made_of_key_files_verifies_the_bundle(played: Rehearsal, trust: Path) -> None:
    assert TrustFile.read(trust) == played.trust
    data = vht("audit", "verify", str(played.root / "bundle"), "--trust", str(trust))
    assert data["verified"] is True
    assert data["permit_id"] == played.permit.permit_id
    assert data["entries"] == sum(len(log) for log in played.logs.values())
    assert data["epsilon"] == pytest.approx(max(data["epsilon_by_node"]["hospital-1"].values()))
    times = [line["time"] for line in data["trace"]]
    assert times == sorted(times)
    assert data["trace"][0]["where"] == "permit.jwt"


def test_people_read_a_table_of_checks_and_the_trace(played: Rehearsal, trust: Path) -> None:
    code, output = run("audit", "verify", str(played.root / "bundle"), "--trust", str(trust))
    assert code == 0
    for words in ("The evidence holds", "Trace of the permit", "issues permit", "acknowledged", "nodes/hospital-1"):
        assert words in " ".join(output.split()), words


def test_the_report_is_one_page_that_shows_the_verdict_the_trace_and_the_keys(
    played: Rehearsal, trust: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    vht("audit", "report", str(played.root / "bundle"), "--trust", str(trust), "--out", str(out))
    page = out.read_text()
    for words in (
        "The evidence holds", played.permit.permit_id, "nodes/hospital-2.json entry", "Signature",
        played.coordinator.public.kid, "Release of a cohort acknowledged",
    ):  # fmt: skip
        assert words in page, words
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_no_report_is_written_where_the_evidence_fails(played: Rehearsal, tmp_path: Path) -> None:
    other, out = SigningTrust(played, tmp_path).path, tmp_path / "report.html"
    vht("audit", "report", str(played.root / "bundle"), "--trust", str(other), "--out", str(out), code=4)
    assert not out.exists()


def test_a_broken_bundle_leaves_with_four_and_names_the_file(played: Rehearsal, trust: Path, tmp_path: Path) -> None:
    other = SigningTrust(played, tmp_path).path
    error = vht("audit", "verify", str(played.root / "bundle"), "--trust", str(other), code=4)
    assert error["code"] == "VHT-VERIFY-LOG-KEY"
    assert "nodes/hospital-1.json" in error["message"]


class SigningTrust:
    """A trust file that holds another key for hospital-1."""

    def __init__(self, played: Rehearsal, folder: Path) -> None:
        nodes = {**played.trust.nodes, "hospital-1": played.trust.nodes["hospital-2"]}
        self.path = folder / "other.json"
        played.trust.model_copy(update={"nodes": nodes}).write(self.path)


def test_a_name_that_looks_like_markup_is_shown_as_it_is(trust: Path, tmp_path: Path) -> None:
    with Rehearsal(tmp_path / "odd", names=("hospital-1", "hospital-2", "hospital-3")) as odd:
        odd.status("start")
        odd.negotiate()
        for name in odd.names:
            odd.log(name, "round.refused", {"job": "[/]", "round": 1, "code": "[red]VHT-X[/]"})
        odd.run |= {"state": "failed"}
        odd.run["nodes"]["hospital-3"]["lost"] = "[/] gone"
        bundle = odd.bundle(tmp_path / "bundle")
        odd.trust.write(tmp_path / "odd.json")
    code, output = run("audit", "verify", str(bundle), "--trust", str(tmp_path / "odd.json"))
    assert code == 0, output
    assert "[red]VHT-X[/]" in "".join(output.split())
    assert "[/] gone" in output


@pytest.mark.parametrize("text", ["", "{}", '{"issuer": {}, "coordinator": {}, "nodes": {"a": {}}}', "[1]"])
def test_a_file_that_is_no_trust_file_is_an_input_error(text: str, played: Rehearsal, tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    path.write_text(text)
    error = vht("audit", "verify", str(played.root / "bundle"), "--trust", str(path), code=2)
    assert error["code"] == "VHT-INPUT-TRUST"


def test_show_prints_claims_and_says_that_they_are_not_verified(played: Rehearsal) -> None:
    data = vht("audit", "show", str(played.root / "bundle"))
    assert data["verified"] is False
    assert data["nodes"] == ["hospital-1", "hospital-2"]
    assert "nodes/hospital-1.json" in data["files"]
    assert "NOT VERIFIED" in run("audit", "show", str(played.root / "bundle"))[1]


def test_show_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    assert vht("audit", "show", str(tmp_path), code=2)["code"] == "VHT-INPUT-BUNDLE"
