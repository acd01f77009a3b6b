"""A backup is its owner's alone, and a node starts again from nothing else."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.commands import vht_node
from kit.hospital import Hospital, approved, ask

from connector.settings import NodeSettings
from vht_federate.errors import InputError, UnavailableError
from vht_federate.processes import PidFile


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0o022)  # as most machines have it: what is made is everybody's to read
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_a_node_is_restored_from_its_backup_alone(stocked: Hospital, tmp_path: Path) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked).id
        assert approved(node, visit) == "ready"
        node.accounts.add("Dr Ada", "approver", "correct horse")
    settings = NodeSettings.read(stocked.state)
    archive = tmp_path / "backup" / "node.tar.gz"
    archive.parent.mkdir()
    data = vht_node("backup", stocked.state, archive)
    assert archive.stat().st_mode & 0o777 == 0o600
    assert {Path(name) for name in data["beside"]} == {settings.certificate, settings.key, settings.ca}
    plain = subprocess.run(["tar", "-czf", tmp_path / "plain.tar.gz", stocked.state], capture_output=True)
    assert plain.returncode == 0  # the control: what tar alone makes
    assert (tmp_path / "plain.tar.gz").stat().st_mode & 0o077
    before = stocked.log()
    for lost in (stocked.state, settings.certificate, settings.key, settings.ca):
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    subprocess.run(["tar", "-xzpf", archive, "-C", "/"], check=True)
    assert (stocked.state.stat().st_mode & 0o777, settings.key.stat().st_mode & 0o077) == (0o700, 0)
    assert all((stocked.state / name).stat().st_mode & 0o077 == 0 for name in ("evidence.key", "operator.token"))
    with stocked.open() as node:
        assert node.accounts.log_in("Dr Ada", "correct horse")
        assert node.visits.get(visit).state == "failed"
        assert stocked.log()[: len(before)] == before
        assert approved(node, ask(node, stocked, study=stocked.study(study_id="again")).id) == "ready"


def test_a_backup_is_of_a_whole_node_at_rest_and_takes_no_files_place(stocked: Hospital, tmp_path: Path) -> None:
    archive = tmp_path / "node.tar.gz"
    with PidFile(stocked.state / "serve.pid"), pytest.raises(UnavailableError):
        vht_node("backup", stocked.state, archive)
    with pytest.raises(InputError, match="outside of what it holds"):
        vht_node("backup", stocked.state, stocked.state / "node.tar.gz")
    certificate = NodeSettings.read(stocked.state).certificate
    moved = certificate.rename(tmp_path / "moved.crt")
    with pytest.raises(InputError, match="is not there"):
        vht_node("backup", stocked.state, archive)
    assert not archive.exists()
    moved.rename(certificate)
    archive.write_text("an older backup")
    with pytest.raises(InputError, match="exists"):
        vht_node("backup", stocked.state, archive)
    assert archive.read_text() == "an older backup"
    archive.unlink()
    assert vht_node("backup", stocked.state, archive)["database_left_out"] is None
    with tarfile.open(archive) as tar:
        names = {Path(name).name for name in tar.getnames()}
    assert {"node.sqlite", "evidence.key", "node.secret", "log.jsonl", certificate.name} <= names
    assert "serve.pid" not in names
