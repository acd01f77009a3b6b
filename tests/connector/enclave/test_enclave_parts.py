"""Parts of the enclave that need no enclave: the fence, the reply store, the cohort, the request handler."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from kit.enclave_visits import PROFILE, SHIPPED, write_cohort
from safetensors.numpy import load, save

from connector.enclave.cohort import read_cohort
from connector.enclave.reply_store import Replies
from connector.enclave.request_handler import RoundNoise, _plain
from vht_federate.errors import CohortError, EgressError, RefusedError
from vht_federate.framing import Reply
from vht_federate.privacy.noise import SecureNoise
from vht_federate.signing.canonical import sha256_hex
from vht_federate.testing import SeededNoise


def fenced(tmp_path: Path, act: str) -> str:
    """Run ``act`` in a process behind the fence; "ok", or the code that stopped it, then the breach on record."""
    own = tmp_path / "state" / "visits" / "v1"
    (own / "cohort").mkdir(parents=True, exist_ok=True)
    (tmp_path / "state" / "evidence.key").write_text("secret")
    (tmp_path / "outside").write_text("public")
    code = textwrap.dedent(
        """
        import os, shutil, socket, sqlite3, subprocess, sys, threading
        from pathlib import Path
        from connector.enclave.audit_hook import Fence
        from vht_federate.errors import EgressError
        own, state, outside = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
        fence = Fence(own, state)
        fence.close()
        try:
            ACT
            print("ok", fence.breach)
        except EgressError as error:
            print(error.code, fence.breach)
        """
    ).replace("ACT", act)
    arguments = [str(own), str(tmp_path / "state"), str(tmp_path / "outside")]
    completed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return completed.stdout.strip()


@pytest.mark.parametrize(
    ("act", "code"),
    [
        ("socket.create_connection(('127.0.0.1', 9))", "NETWORK"),
        ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "NETWORK"),
        ("socket.getaddrinfo('example.org', 443)", "NETWORK"),
        ("socket.socket(socket.AF_UNIX).connect('/run/docker.sock')", "NETWORK"),
        ("socket.socket(socket.AF_UNIX).bind(str(own / 'mine.sock'))", "NETWORK"),
        ("subprocess.run(['true'])", "PROGRAM"),
        ("os.system('true')", "PROGRAM"),
        ("os.fork()", "PROGRAM"),
        ("os.execv('/bin/true', ['true'])", "PROGRAM"),
        ("outside.write_text('x')", "FILE"),
        ("os.open(outside, os.O_WRONLY)", "FILE"),
        ("outside.open('a')", "FILE"),
        ("outside.unlink()", "FILE"),
        ("outside.rename(own / 'stolen')", "FILE"),
        ("(outside.parent / 'folder').mkdir()", "FILE"),
        ("(own / 'link').symlink_to(state)", "FILE"),
        ("sqlite3.connect(state / 'node.sqlite')", "FILE"),
        ("(state / 'evidence.key').read_text()", "FILE"),
        ("(own / '..' / '..' / 'evidence.key').read_bytes()", "FILE"),
        ("open(b'/dev/../' + os.fsencode(state / 'evidence.key'))", "FILE"),
        ("shutil.copy(outside, state)", "FILE"),
    ],
)
def test_nothing_gets_over_the_fence_and_the_attempt_is_remembered(tmp_path: Path, act: str, code: str) -> None:
    assert fenced(tmp_path, act) == f"VHT-EGRESS-{code} VHT-EGRESS-{code}"
    assert (tmp_path / "outside").read_text() == "public"


def test_a_breach_is_remembered_though_the_code_hides_it(tmp_path: Path) -> None:
    act = "\n    ".join(["try: os.system('true')", "except Exception: pass"])
    assert fenced(tmp_path, act) == "ok VHT-EGRESS-PROGRAM"


def test_its_own_folder_public_files_threads_and_the_null_device_stay_open(tmp_path: Path) -> None:
    act = "; ".join(
        [
            "(own / 'a').write_text('x')",
            "(own / 'a').rename(own / 'b')",
            "(own / 'b').unlink()",
            "sqlite3.connect(own / 'x.sqlite').execute('create table t (a)')",
            "outside.read_text()",
            "Path(os.devnull).write_text('x')",
            "socket.socketpair()",
            "threading.Thread(target=int).start()",
        ]
    )
    assert fenced(tmp_path, act) == "ok None"


# --- replies --------------------------------------------------------------------------------------------------------


def test_replies_survive_a_restart_and_tell_apart_new_same_other_and_spent(tmp_path: Path) -> None:
    replies = Replies(tmp_path / "r.sqlite")
    assert replies.find("train", 1, "aa") is None
    replies.begun("train", 1, "aa")
    replies.released("train", 1, Reply({"n": 1.5}, b"\0\1"))
    replies.begun("train", 2, "bb")
    replies.close()
    again = Replies(tmp_path / "r.sqlite")
    assert again.find("train", 1, "aa") == Reply({"n": 1.5}, b"\0\1")
    assert again.find("evaluate", 1, "aa") is None
    assert again.results() == {("train", 1): {"n": 1.5}}
    for request, code in (("aa", "VHT-REFUSED-REPLAY"), ("bb", "VHT-REFUSED-SPENT")):
        with pytest.raises(RefusedError) as caught:
            again.find("train", 2, request)
        assert caught.value.code == code
    again.close()


# --- noise and answers ------------------------------------------------------------------------------------------------


def test_the_first_use_of_randomness_begins_the_round_once() -> None:
    begun = []
    noise = RoundNoise(SeededNoise(0), lambda: begun.append(1))
    assert not noise.begun
    noise.poisson_sample(5, 0.5)
    noise.gaussian((2,))
    noise.gaussian_float32((2,))
    assert begun == [1]


def test_a_round_offers_noise_in_single_precision_whatever_its_source_has() -> None:
    for source in (SeededNoise(0), SecureNoise()):
        drawn = RoundNoise(source, lambda: None).gaussian_float32((3, 2))
        assert (drawn.shape, drawn.dtype) == ((3, 2), np.float32)


def test_a_round_that_may_not_begin_gives_no_noise_and_after_the_round_there_is_none() -> None:
    def no() -> None:
        raise RefusedError("no")

    noise = RoundNoise(SeededNoise(0), no)
    with pytest.raises(RefusedError):
        noise.uniform(1)
    assert not noise.begun
    over = RoundNoise(SeededNoise(0), lambda: None)
    over.closed = True
    with pytest.raises(EgressError):
        over.gaussian((1,))


@pytest.mark.parametrize(
    "value", [float("nan"), {"a": [float("inf")]}, np.float64("nan"), b"x", {1: 2}, {1, 2}, object()]
)
def test_answers_are_json_without_nan(value) -> None:
    with pytest.raises(TypeError):
        _plain(value)


def test_numpy_scalars_become_plain_numbers() -> None:
    assert _plain({"a": (np.int64(3), np.float32(0.5), np.bool_(True), None)}) == {"a": [3, 0.5, True, None]}


# --- cohort -----------------------------------------------------------------------------------------------------------


def reseal(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    raw = save(tensors)
    (folder / "cohort.safetensors").write_bytes(raw)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": sha256_hex(raw)}))


def test_a_sound_cohort_is_read_and_stays_private(tmp_path: Path) -> None:
    write_cohort(tmp_path / "c")
    cohort = read_cohort(tmp_path / "c", SHIPPED.component, PROFILE)
    assert repr(cohort) == "Private(redacted)"
    assert cohort.map(lambda arrays: arrays.patients)._open() == 120


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.pop("bucket"),
        lambda t: t.update(extra=np.zeros(1)),
        lambda t: t.update(values=t["values"].astype(np.float64)),
        lambda t: t.update(values=t["values"][:, :-1].copy()),
        lambda t: t.update(values=t["values"][:-1].copy()),
        lambda t: t.update(outcome=t["outcome"] + 0.5),
        lambda t: t.update(outcome=np.full_like(t["outcome"], np.nan)),
        lambda t: t.update(patient=t["patient"][::-1].copy()),
        lambda t: t.update(patient=t["patient"] + 1),
        lambda t: t.update(patient=t["patient"] - 1),
        lambda t: t.update(bucket=t["bucket"] + np.uint8(100)),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused_without_a_value(tmp_path: Path, spoil) -> None:
    write_cohort(tmp_path / "c")
    tensors = load((tmp_path / "c" / "cohort.safetensors").read_bytes())
    spoil(tensors)
    reseal(tmp_path / "c", tensors)
    with pytest.raises(CohortError) as caught:
        read_cohort(tmp_path / "c", SHIPPED.component, PROFILE)
    assert caught.value.code == "VHT-COHORT-TENSORS"
    assert not any(letter.isdigit() for letter in caught.value.message)


@pytest.mark.parametrize("harm", ["cut", "gone", "no manifest", "manifest", "component", "profile", "inputs"])
def test_a_cohort_that_is_not_what_its_manifest_says_is_refused(tmp_path: Path, harm: str) -> None:
    write_cohort(tmp_path / "c")
    tensors, manifest = tmp_path / "c" / "cohort.safetensors", tmp_path / "c" / "manifest.json"
    if harm == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif harm == "gone":
        tensors.unlink()
    elif harm == "no manifest":
        manifest.unlink()
    elif harm == "manifest":
        manifest.write_text("{")
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {harm: "other"}))
    with pytest.raises(CohortError):
        read_cohort(tmp_path / "c", SHIPPED.component, PROFILE)
