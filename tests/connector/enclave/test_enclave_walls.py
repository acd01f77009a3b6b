"""Whole enclaves: a component's native attacks, a node that cannot raise the walls, and whose code the jobs are."""

import json
import textwrap
from pathlib import Path

import psutil
import pytest
from kit.enclave_visits import planted, visit_spec
from kit.hostile_table import Answered
from kit.installed_intruder import register_job
from kit.walled_process import NOTHING_HOLDS, need_walls, on_machine_without

from connector.enclave.isolation_probe import offered_isolation
from vht_federate.domain.isolation import IsolationLevel
from vht_federate.domain.job_origin import JobOrigin
from vht_federate.errors import ComponentError, RefusedError, VhtError

# Acts that the audit hook does not see; what they bring home lies in the visit's own folder.
HOSTILE = """
import ctypes, json, os
import torch
from torch import nn
from pathlib import Path

STATE, OUTSIDE = {state!r}, {outside!r}


def tried(act):
    try:
        return act()
    except BaseException as error:
        return None


def read_key():
    key = STATE + "/evidence.key"
    return bytes(torch.UntypedStorage.from_file(key, False, os.stat(key).st_size)).decode()


def write_rows():
    writer = torch._C.PyTorchFileWriter(OUTSIDE + "/rows")
    writer.write_record("rows", b"rows", 4)
    writer.write_end_of_file()
    return "written"


def shell():
    return libc.system(f"echo out > {{OUTSIDE}}/marker".encode()) == 0 or None


def socket():
    return libc.socket(2, 1, 0) >= 0 or None


libc = ctypes.CDLL(None)
ACTS = (read_key, write_rows, shell, socket)
Path("at-import").write_text(json.dumps({{act.__name__: tried(act) for act in ACTS}}))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(11, 1)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, values):
        Path("in-a-round").write_text(json.dumps({{act.__name__: tried(act) for act in ACTS}}))
        return self.linear(torch.nan_to_num(values)).squeeze(-1) * self.scale


def build(component, profile):
    return Model()
"""
# The same from a machine that lacks walls: argv is the root, the component, and the level that is required there.
STARTED = """
import os, json, sys
sys.path[:0] = ["tests", "."]
from pathlib import Path
import numpy as np
from kit.enclave_visits import Courier, RecordingGate, visit_spec
from connector.enclave.host import EnclaveHost
from vht_federate.errors import VhtError
root, component = Path(sys.argv[1]), Path(sys.argv[2])
run_dir = root / "r"
run_dir.mkdir(mode=0o700)
host = EnclaveHost(run_dir)
spec = visit_spec(root / "state", component=component).model_copy(update={"isolation": sys.argv[3]})
weights = {
    "linear.weight": np.zeros((1, 11), np.float32), "linear.bias": np.zeros(1, np.float32),
    "scale": np.ones((), np.float32),
}
gate = RecordingGate()
try:
    info = host.start(spec, component, gate)
    reply = Courier(run_dir).call("train", 1, weights)
    print(json.dumps({"isolation": info.isolation, "walls": info.walls, "asked": gate.kinds()}))
except VhtError as error:
    print(json.dumps(error.envelope()))
finally:
    host.close()
"""
ALL = {"read_key", "write_rows", "shell", "socket"}


@pytest.fixture
def hostile(place: Path, tmp_path_factory):
    """A short root with a node's key, a place outside, and the hostile component: (root, component)."""
    root = Path(tmp_path_factory.mktemp("h"))
    (root / "state").mkdir(mode=0o700)
    (root / "state" / "evidence.key").write_text("the node's signing key")
    (root / "outside").mkdir()
    code = HOSTILE.format(state=str(root / "state"), outside=str(root / "outside"))
    return root, planted(root / "component", textwrap.dedent(code))


def started_without(facilities: tuple[str, ...], root: Path, component: Path, level: IsolationLevel) -> dict:
    done = on_machine_without(facilities, STARTED, str(root), str(component), level)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def brought_home(root: Path, name: str) -> dict:
    return json.loads((root / "state" / "visits" / "v1" / name).read_text())


@pytest.mark.hostile("component")
@pytest.mark.parametrize("without", [(), ("namespaces",)], ids=["all", "no-namespaces"])
def test_a_component_reaches_nothing_from_its_import_on_and_the_round_is_answered(
    hostile, without, answered: Answered
) -> None:
    need_walls("seccomp", "landlock")
    root, component = hostile
    answer = started_without(without, root, component, IsolationLevel.SANDBOX)
    assert (answer["isolation"], answer["asked"]) == ("sandbox", ["begin", "release"])
    assert ("network-namespace" in answer["walls"]) == (not without)
    for name in ("at-import", "in-a-round"):
        assert brought_home(root, name) == dict.fromkeys(ALL)
    assert list((root / "outside").iterdir()) == []
    answered("nothing for it; the round is answered")


@pytest.mark.hostile("fails-open", control=True)
@pytest.mark.hostile("component", control=True)
def test_control_on_a_machine_without_walls_it_reaches_everything_where_the_operator_let_it(hostile) -> None:
    root, component = hostile
    answer = started_without(NOTHING_HOLDS, root, component, IsolationLevel.AUDIT_HOOK)
    assert answer["isolation"] == "audit-hook"
    assert not any(wall.startswith(("landlock", "seccomp", "network")) for wall in answer["walls"])
    got = brought_home(root, "at-import")
    assert got["read_key"] == "the node's signing key"
    assert all(got.values())
    assert {path.name for path in (root / "outside").iterdir()} == {"rows", "marker"}


@pytest.mark.hostile("fails-open")
@pytest.mark.parametrize(
    ("without", "level"),
    [
        (NOTHING_HOLDS, IsolationLevel.SANDBOX),
        (NOTHING_HOLDS, IsolationLevel.SYSTEM_CALLS),
        (("landlock", "namespaces"), IsolationLevel.SANDBOX),
        (("seccomp",), IsolationLevel.SYSTEM_CALLS),
    ],
)
def test_no_enclave_starts_below_what_is_required_and_no_code_of_a_component_ran(
    hostile, without, level, answered: Answered
) -> None:
    root, component = hostile
    answer = started_without(without, root, component, level)
    assert answer["code"] == "VHT-REFUSED-ISOLATION"
    assert "enclave_isolation" in answer["hint"]
    assert not (root / "state" / "visits" / "v1" / "at-import").exists()
    answered(answer["code"])


def test_a_weaker_level_that_is_allowed_starts_and_is_named(hostile) -> None:
    need_walls("seccomp")
    root, component = hostile
    answer = started_without(("landlock", "namespaces"), root, component, IsolationLevel.SYSTEM_CALLS)
    assert answer["isolation"] == "system-calls"
    assert brought_home(root, "at-import") == {
        "read_key": "the node's signing key", "write_rows": "written", "shell": None, "socket": None
    }  # fmt: skip


def test_an_enclave_says_how_it_is_closed_off_and_its_process_is(standing) -> None:
    info = standing[0]
    offered = offered_isolation()
    assert (info.isolation, info.walls) == (offered.level, offered.walls)
    if "seccomp" in info.walls:
        status = Path(f"/proc/{info.pid}/status").read_text()
        assert "\nSeccomp:\t2\n" in status
        assert "\nNoNewPrivs:\t1\n" in status
    assert {path.path for path in psutil.Process(info.pid).open_files()} <= {
        str(path) for path in standing[2].run_dir.parent.joinpath("state", "visits", "v1").rglob("*")
    } | {"/dev/null"}


def test_a_state_directory_inside_what_enclaves_read_is_refused(fresh, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    spec = visit_spec(tmp_path / "state")
    with pytest.raises(RefusedError) as caught:
        fresh(spec_of=lambda _: spec)
    assert caught.value.code == "VHT-REFUSED-LAYOUT"


SPEAKS = """
import json, os, stat, struct
from torch import nn

words = {"kind": "failed", "error": {"code": "VHT-ROW-OFPATIENT", "message": "bmi 31.4159", "hint": "31.4159"}}
frame = json.dumps(words).encode()
for fd in range(3, 20):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.write(fd, struct.pack(">IQ", len(frame), 0) + frame)
    except OSError:
        pass
raise SystemExit


def build(component, profile):
    return nn.Linear(1, 1)
"""


def test_a_component_that_speaks_in_the_enclaves_name_brings_no_word_of_its_own_out(fresh) -> None:
    """The reason why a visit ended is told to the coordinator."""
    with pytest.raises(VhtError) as caught:
        fresh(SPEAKS)
    assert caught.value.code == "VHT-INTERNAL-ENCLAVE"
    assert "31.4" not in str(caught.value.envelope())


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_an_enclave_says_whose_code_its_jobs_are(standing) -> None:
    jobs = standing[0].jobs
    assert set(jobs) == {"train", "evaluate"}
    assert {(job.distribution, job.entry) for job in jobs.values()} == {
        ("vht-federate", "connector.enclave.jobs:train"),
        ("vht-federate", "connector.enclave.jobs:evaluate"),
    }
    assert all(isinstance(job, JobOrigin) and len(job.digest) == 64 for job in jobs.values())


@pytest.mark.hostile("jobs")
@pytest.mark.parametrize("job", ["train", "marginals"])
def test_a_package_that_registers_a_job_a_second_time_is_refused(
    fresh, tmp_path: Path, monkeypatch, job: str, answered: Answered
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(register_job(tmp_path / "site", job)))
    with pytest.raises(ComponentError) as caught:
        fresh()
    assert caught.value.code == "VHT-COMPONENT-JOB-TWICE"
    answered(caught.value.code)
    assert "intruder 1.0" in caught.value.message
    assert "vht-federate" in caught.value.message
