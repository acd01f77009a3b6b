"""What a Flower message carries: calls to enclaves one way, their replies the other way.

Call ``i`` is the ConfigRecord ``call.i``: visit, job, round, params (JSON), deadline_s, tensors (safetensors bytes).
Reply ``i`` is the ConfigRecord ``reply.i``: ok, result (JSON), error (JSON envelope), sha256, tensors. Tensors travel
as the bytes the enclave wrote: the digest that a node logs before an answer leaves is the digest of what arrives.

Flower names each part of a message by its content's hash, and shares a part that two messages have in common: the one
that is through first takes it away from the other. So no two messages share one: each record of a call holds a
``message`` drawn by chance, and each of a reply the identifier of the message that it answers (``answering``).
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from vht_federate.errors import VhtError, WireError, error_from_envelope
from vht_federate.framing import Call, Reply
from vht_federate.signing.strict_json import read_json

__all__ = ["Answer", "calls_of", "pack_calls", "pack_replies", "replies_of"]


@dataclass(frozen=True)
class Answer:
    """One call's outcome at one node: a reply with the digest of its bytes, or the typed error of the refusal."""

    reply: Reply | None
    sha256: str = ""
    error: VhtError | None = None


def pack_calls(calls: Sequence[Call], *, deadline_s: float) -> RecordDict:
    """The content of one message; each call must be answered within ``deadline_s``."""
    records, message = RecordDict(), secrets.token_hex(16)
    for number, call in enumerate(calls):
        records[f"call.{number}"] = ConfigRecord(
            {
                "visit": call.visit,
                "job": call.job,
                "round": call.round,
                "params": json.dumps(call.params),
                "deadline_s": float(deadline_s),
                "tensors": call.tensors,
                "message": message,
            }
        )
    return records


def calls_of(records: RecordDict) -> list[tuple[Call, float]]:
    """Calls and their deadlines. Raises WireError VHT-WIRE-CALL for anything else: a courier trusts no message."""
    calls = []
    try:
        for number in range(len(records)):
            record = records.config_records[f"call.{number}"]
            if not {"visit", "job", "params"} <= {key for key, value in record.items() if isinstance(value, str)}:
                raise TypeError
            tensors, params = record["tensors"], read_json(str(record["params"]))
            if not isinstance(tensors, bytes) or not isinstance(params, dict):
                raise TypeError
            call = Call(str(record["visit"]), str(record["job"]), int(str(record["round"])), params, tensors)
            calls.append((call, float(str(record["deadline_s"]))))
    except (KeyError, TypeError, ValueError) as error:
        raise WireError("this message holds no calls to an enclave", code="VHT-WIRE-CALL") from error
    return calls


def pack_replies(answers: Sequence[Answer], *, answering: str) -> RecordDict:
    """The content of the reply to the message ``answering``: that of no other message, whatever the answers are."""
    records = RecordDict()
    for number, answer in enumerate(answers):
        reply = answer.reply or Reply({})
        records[f"reply.{number}"] = ConfigRecord(
            {
                "ok": answer.reply is not None,
                "result": json.dumps(reply.result),
                "error": json.dumps(answer.error.envelope() if answer.error else {}),
                "sha256": answer.sha256,
                "tensors": reply.tensors,
                "answering": answering,
            }
        )
    return records


def _answer_of(record: Any) -> Answer:
    if not record["ok"]:
        return Answer(None, error=error_from_envelope(read_json(str(record["error"]))))
    result, tensors = read_json(str(record["result"])), record["tensors"]
    if not isinstance(result, dict) or not isinstance(tensors, bytes):
        raise TypeError
    reply = Reply(result, tensors)
    digest = reply.sha256()
    if digest != record["sha256"]:
        raise WireError("a reply was changed on its way: its digest differs", code="VHT-WIRE-DIGEST")
    return Answer(reply, digest)


def replies_of(records: RecordDict, expected: int) -> list[Answer]:
    """The ``expected`` answers of one message. Raises WireError VHT-WIRE-REPLY or VHT-WIRE-DIGEST."""
    try:
        return [_answer_of(records.config_records[f"reply.{number}"]) for number in range(expected)]
    except (KeyError, TypeError, ValueError) as error:
        raise WireError("a courier answered with something else than replies", code="VHT-WIRE-REPLY") from error
