"""The courier carries calls and refusals, and nothing else gets past it."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from kit.toy_enclave import ToyEnclave
from safetensors.numpy import load, save

from strategies.courier import carry
from strategies.message_content import Answer, calls_of, pack_calls, pack_replies, replies_of
from vht_federate.errors import BudgetError, InputError, RevokedError, UnavailableError, WireError
from vht_federate.framing import Call, Reply

WEIGHTS = save({"w": np.zeros(3, dtype=np.float32)})


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vht-") as directory:
        yield Path(directory)


def ask(folder: Path, *calls: Call) -> list[Answer]:
    records = carry(pack_calls(calls, deadline_s=60), {"enclave-directory": str(folder)}, answering="m-1")
    return replies_of(records, len(calls))


def test_a_call_reaches_the_enclave_and_its_answer_comes_back_with_its_digest(folder: Path) -> None:
    enclave = ToyEnclave(folder, "v-1")
    (answer,) = ask(folder, Call("v-1", "train", 1, {}, WEIGHTS))
    enclave.close()
    assert answer.reply is not None
    assert load(answer.reply.tensors)["w"].tolist() == [1.0, 1.0, 1.0]
    assert answer.sha256 == answer.reply.sha256()


def test_calls_of_one_message_are_answered_in_order_and_alone(folder: Path) -> None:
    def refuse_marginals(header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        if header["job"] == "marginals":
            raise BudgetError("no reservation", code="VHT-BUDGET-RESERVED")
        return {"job": header["job"]}, body

    enclave = ToyEnclave(folder, "v-1", refuse_marginals)
    first, second, third = ask(folder, *(Call("v-1", job, 1) for job in ("evaluate", "marginals", "train")))
    enclave.close()
    assert first.reply == Reply({"job": "evaluate"})
    assert isinstance(second.error, BudgetError)
    assert second.error.code == "VHT-BUDGET-RESERVED"
    assert third.reply == Reply({"job": "train"})


def test_a_revocation_stays_a_revocation(folder: Path) -> None:
    def revoked(*_: Any) -> Any:
        raise RevokedError("permit p is revoked")

    enclave = ToyEnclave(folder, "v-1", revoked)
    (answer,) = ask(folder, Call("v-1", "train", 1))
    enclave.close()
    assert isinstance(answer.error, RevokedError)


@pytest.mark.parametrize(
    "visit", ["../v-1", "v-1/../../etc", "/etc/passwd", "", ".", "V-1", "v_1", "v-1\n", "a" * 65, "v-1\x00"]
)
def test_a_visit_name_never_becomes_a_path(folder: Path, visit: str) -> None:
    inner = folder / "inner"
    inner.mkdir()
    enclave = ToyEnclave(folder, "v-1")
    (answer,) = ask(inner, Call(visit, "train", 1))
    enclave.close()
    assert isinstance(answer.error, InputError)
    assert answer.error.code == "VHT-INPUT-VISIT"
    assert enclave.calls == []


def test_a_node_that_did_not_approve_has_no_enclave_to_ask(folder: Path) -> None:
    (answer,) = ask(folder, Call("v-9", "train", 1))
    assert isinstance(answer.error, UnavailableError)
    assert answer.error.code == "VHT-UNAVAILABLE-ENCLAVE"


def test_a_wrong_token_is_refused_by_the_enclave(folder: Path) -> None:
    enclave = ToyEnclave(folder, "v-1", token="right")
    (folder / "v-1.token").write_text("wrong")
    (answer,) = ask(folder, Call("v-1", "train", 1))
    enclave.close()
    assert answer.error is not None
    assert answer.error.code == "VHT-REFUSED-TOKEN"
    assert enclave.calls == []


@pytest.mark.parametrize("directory", [None, 7, "relative/path"])
def test_a_supernode_without_an_enclave_directory_says_so(directory: object) -> None:
    calls = pack_calls([Call("v-1", "train", 1)], deadline_s=5)
    records = carry(calls, {"enclave-directory": directory}, answering="m-1")
    assert replies_of(records, 1)[0].error is not None
    assert replies_of(records, 1)[0].error.code == "VHT-INPUT-NODE-CONFIG"


@pytest.mark.parametrize(
    "broken",
    [
        {"call.1": {"visit": "v"}},
        {"call.0": {"visit": "v"}},
        {"call.0": {"visit": 1, "job": "train", "round": 1, "params": "{}", "deadline_s": 1.0, "tensors": b""}},
        {"call.0": {"visit": "v", "job": "train", "round": 1, "params": "[]", "deadline_s": 1.0, "tensors": b""}},
        {"call.0": {"visit": "v", "job": "train", "round": 1, "params": "{", "deadline_s": 1.0, "tensors": b""}},
        {"call.0": {"visit": "v", "job": "train", "round": "x", "params": "{}", "deadline_s": 1.0, "tensors": b""}},
        {"call.0": {"visit": "v", "job": "train", "round": 1, "params": "{}", "deadline_s": 1.0, "tensors": "text"}},
    ],
)
def test_a_message_that_holds_no_calls_is_a_wire_error(broken: dict[str, dict[str, Any]], folder: Path) -> None:
    records = RecordDict({name: ConfigRecord(record) for name, record in broken.items()})
    with pytest.raises(WireError):
        calls_of(records)
    (answer,) = replies_of(carry(records, {"enclave-directory": str(folder)}, answering="m-1"), 1)
    assert answer.error is not None
    assert answer.error.code == "VHT-WIRE-CALL"


def test_calls_survive_the_trip() -> None:
    calls = [Call("v-1", "marginals", 2, {"pairs": [["age", "male"]]}, b"\x00\xff"), Call("v-1", "train", 1)]
    assert [call for call, _ in calls_of(pack_calls(calls, deadline_s=9))] == calls


@pytest.mark.parametrize(("name", "value"), [("result", '{"patients_noised": 1}'), ("tensors", b"other")])
def test_a_reply_changed_on_its_way_is_noticed(name: str, value: object) -> None:
    reply = Reply({"patients_noised": 2}, b"bytes")
    records = pack_replies([Answer(reply, reply.sha256())], answering="m-1")
    records.config_records["reply.0"][name] = value  # type: ignore[assignment]
    with pytest.raises(WireError) as caught:
        replies_of(records, 1)
    assert caught.value.code == "VHT-WIRE-DIGEST"


def test_the_courier_loads_neither_torch_nor_a_data_library() -> None:
    forbidden = "{'torch', 'connector', 'pyarrow', 'duckdb', 'sqlalchemy.orm', 'pandas', 'synth'}"
    code = f"import sys, strategies.warm_executor; sys.exit(','.join({forbidden} & set(sys.modules)) or 0)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
