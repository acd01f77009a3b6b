"""The evidence log on a disk that tears, under processes that die, beside people who meddle."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vht_federate.errors import InputError, UnavailableError, VerificationError
from vht_federate.evidence.entry import HEAD_TYP, RECEIPT_TYP
from vht_federate.evidence.log import EvidenceLog
from vht_federate.evidence.merkle import hash_leaf, root_of
from vht_federate.signing.keys import SigningKey
from vht_federate.testing import FixedClock

KEY = SigningKey.generate()


def opened(folder: Path, key: SigningKey = KEY, name: str = "h1") -> EvidenceLog:
    return EvidenceLog(folder, key, name, FixedClock())


def filled(folder: Path, count: int = 4) -> Path:
    with opened(folder) as log:
        for number in range(count):
            log.append("permit.checked", {"number": number, "text": "α"}, permit_id="p-1", visit="v-1")
    return folder


def test_what_was_appended_is_there_after_opening_again(tmp_path: Path) -> None:
    filled(tmp_path)
    with opened(tmp_path) as log:
        entries = list(log.entries())
        head = log.head()
    assert [entry.body["number"] for entry in entries] == [0, 1, 2, 3]
    assert [entry.index for entry in entries] == [0, 1, 2, 3]
    assert {(entry.node, entry.permit_id, entry.visit) for entry in entries} == {("h1", "p-1", "v-1")}
    lines = (tmp_path / "log.jsonl").read_bytes().splitlines()
    assert head is not None
    assert head.root == root_of([hash_leaf(line) for line in lines]).hex()
    assert KEY.public.verify(head.token, typ=HEAD_TYP) == head.claims()


def test_an_empty_log_has_no_head(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        assert log.head() is None
        assert len(log) == 0
        assert log.export("p-1")["entries"] == []


def test_an_entry_is_on_disk_with_its_head_before_append_returns(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        entry = log.append("node.started", {"version": "1"})
        line = (tmp_path / "log.jsonl").read_bytes()
        head = (tmp_path / "heads.jsonl").read_text().strip()
    assert json.loads(line)["index"] == entry.index
    assert KEY.public.verify(head, typ=HEAD_TYP)["size"] == 1


def test_a_body_changed_by_its_caller_does_not_change_the_log(tmp_path: Path) -> None:
    body = {"list": [1]}
    with opened(tmp_path) as log:
        log.append("node.started", body)
        body["list"].append(2)
        assert [entry.body for entry in log.entries()] == [{"list": [1]}]
        log.append("node.started", {})
    with opened(tmp_path) as log:
        assert len(log) == 2


def test_a_body_outside_json_is_refused_and_the_log_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        with pytest.raises(InputError):
            log.append("node.started", {"nan": float("nan")})
        assert log.append("node.started", {}).index == 0


def test_a_second_writer_is_refused_while_the_first_holds_the_folder(tmp_path: Path) -> None:
    with opened(tmp_path):
        with pytest.raises(UnavailableError) as caught:
            opened(tmp_path)
        assert caught.value.code == "VHT-UNAVAILABLE-LOG"
    opened(tmp_path).close()


def test_threads_append_in_one_order(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        threads = [
            threading.Thread(target=lambda: [log.append("node.started", {}) for _ in range(10)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(log) == 40
    with opened(tmp_path) as log:
        assert [entry.index for entry in log.entries()] == list(range(40))


def test_a_disk_that_refuses_closes_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as log:
        log.append("node.started", {"number": 0})
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            log.append("node.started", {"number": 1})
        monkeypatch.undo()
        with pytest.raises(UnavailableError):
            log.append("node.started", {"number": 2})
    with opened(tmp_path) as log:
        assert [entry.body["number"] for entry in log.entries()] == [0]
        assert log.append("node.started", {"number": 3}).index == 1


@pytest.mark.parametrize("lost", [1, 5, 40])
def test_a_torn_last_entry_never_took_effect(tmp_path: Path, lost: int) -> None:
    filled(tmp_path)
    heads = (tmp_path / "heads.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "heads.jsonl").write_bytes(b"".join(heads[:-1]))
    data = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").write_bytes(data[:-lost])
    with opened(tmp_path) as log:
        assert len(log) == 3
        assert log.append("node.started", {}).index == 3
    with opened(tmp_path) as log:
        assert len(log) == 4


@pytest.mark.parametrize("lost", [1, 30, 10_000])
def test_a_last_entry_without_a_whole_head_never_took_effect(tmp_path: Path, lost: int) -> None:
    filled(tmp_path, 3)
    heads = (tmp_path / "heads.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "heads.jsonl").write_bytes(b"".join(heads[:-1]) + heads[-1][: max(0, len(heads[-1]) - lost)])
    with opened(tmp_path) as log:
        assert len(log) == 2
        assert log.head() is not None


def test_an_entry_that_was_cut_although_its_head_stands_is_noticed(tmp_path: Path) -> None:
    filled(tmp_path)
    lines = (tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "log.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(VerificationError) as caught:
        opened(tmp_path)
    assert caught.value.code == "VHT-VERIFY-LOG"
    opened(tmp_path / "other").close()


@settings(max_examples=60, deadline=None)
@given(
    file=st.sampled_from(["log.jsonl", "heads.jsonl"]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7)
)
def test_any_changed_bit_refuses_to_open(
    tmp_path_factory: pytest.TempPathFactory, file: str, place: float, bit: int
) -> None:
    folder = filled(tmp_path_factory.mktemp("log"), 3)
    data = bytearray((folder / file).read_bytes())
    offset = int(place * (len(data) - 1))  # the very last newline stands for a crash
    data[offset] ^= 1 << bit
    (folder / file).write_bytes(bytes(data))
    with pytest.raises(VerificationError):
        opened(folder)


def test_swapped_and_dropped_entries_another_key_and_another_name_refuse_to_open(tmp_path: Path) -> None:
    filled(tmp_path)
    lines = (tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
    heads = (tmp_path / "heads.jsonl").read_bytes().splitlines(keepends=True)
    for order in ([1, 0, 2, 3], [0, 2, 3], [0, 1, 2, 2]):
        (tmp_path / "log.jsonl").write_bytes(b"".join(lines[number] for number in order))
        (tmp_path / "heads.jsonl").write_bytes(b"".join(heads[: len(order)]))
        with pytest.raises(VerificationError):
            opened(tmp_path)
    (tmp_path / "log.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "heads.jsonl").write_bytes(b"".join(heads))
    with pytest.raises(VerificationError):
        opened(tmp_path, key=SigningKey.generate())
    with pytest.raises(VerificationError):
        opened(tmp_path, name="h2")
    opened(tmp_path).close()


APPENDER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from vht_federate.signing.keys import SigningKey
from vht_federate.evidence.log import EvidenceLog
folder = Path(sys.argv[1])
log = EvidenceLog(folder / "log", SigningKey.read(folder / "node.key"), "h1", lambda: datetime.now(UTC))
while True:
    entry = log.append("round.begun", {"padding": "x" * 3000}, permit_id="p", visit="v")
    print(entry.index, flush=True)
"""


@pytest.mark.faults
def test_entries_that_were_reported_survive_sigkill(tmp_path: Path) -> None:
    key = SigningKey.create(tmp_path / "node.key")
    reported = -1
    for patience in (1, 7, 20):
        process = subprocess.Popen([sys.executable, "-c", APPENDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(patience):
            reported = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:
            reported = int(line) if line.strip().isdigit() and line.endswith("\n") else reported
        process.stdout.close()
        process.wait(timeout=120)
        with opened(tmp_path / "log", key) as log:
            assert reported < len(log) <= reported + 2
            reported = len(log) - 1


def test_an_export_shows_its_permit_and_hides_others_behind_salted_hashes(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append("node.started", {})
        log.append("visit.requested", {"secret": "other study"}, permit_id="p-2", visit="v-2")
        own_entry = log.append("visit.requested", {"study": "mine"}, permit_id="p-1", visit="v-1")
        log.append("dataset.ingested", {"dataset": "d"})
        export = log.export("p-1")
        receipt = KEY.public.verify(log.receipt(own_entry), typ=RECEIPT_TYP)
        salts = {entry.salt for entry in log.entries()}
    assert [set(item) == {"leaf"} for item in export["entries"]] == [False, True, False, True]
    assert "other study" not in json.dumps(export)
    assert export["entries"][2] == own_entry.as_dict()
    assert receipt["index"] == 2
    assert receipt["size"] == 3
    assert receipt["leaf"] == own_entry.leaf().hex()
    assert len(salts) == 4
    assert all(len(salt) == 32 for salt in salts)
