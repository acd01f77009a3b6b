"""The courier: carries a message to the enclave of its visit and brings the answer back.

It has neither torch nor data, and trusts no message: a visit's name becomes a file name only after it was checked,
and the token that opens an enclave is read here and never leaves the node. A refusal is an answer, not an exception.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from flwr.app import RecordDict

from strategies.message_content import Answer, calls_of, pack_replies
from vht_federate.errors import InputError, UnavailableError, VhtError
from vht_federate.framing import Call, call_enclave

__all__ = ["ENCLAVE_DIRECTORY", "carry", "enclave_directory"]

ENCLAVE_DIRECTORY = "enclave-directory"  # key of the SuperNode's node configuration
MAX_DEADLINE_S = 3600.0
_VISIT = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def enclave_directory(node_config: Mapping[str, object]) -> Path:
    """Where this node's enclaves listen. Raises InputError VHT-INPUT-NODE-CONFIG."""
    directory = node_config.get(ENCLAVE_DIRECTORY)
    if not isinstance(directory, str) or not Path(directory).is_absolute():
        raise InputError(
            f"this SuperNode was started without an absolute {ENCLAVE_DIRECTORY}", code="VHT-INPUT-NODE-CONFIG"
        )
    return Path(directory)


def _ask(call: Call, directory: Path, deadline_s: float) -> Answer:
    if not _VISIT.fullmatch(call.visit):
        raise InputError("a message names a visit that cannot exist", code="VHT-INPUT-VISIT")
    try:
        token = (directory / f"{call.visit}.token").read_text().strip()
    except OSError as error:
        raise UnavailableError(
            "no enclave is open for this visit at this node",
            code="VHT-UNAVAILABLE-ENCLAVE",
            hint="an operator must approve the visit; a closed or revoked visit has no enclave",
        ) from error
    timeout_s = min(max(deadline_s, 1.0), MAX_DEADLINE_S)
    reply = call_enclave(directory / f"{call.visit}.sock", token, call, timeout_s=timeout_s)
    return Answer(reply, reply.sha256())


def carry(records: RecordDict, node_config: Mapping[str, object], *, answering: str) -> RecordDict:
    """Answer every call of the message ``answering``, in order; a call that fails carries its typed error."""
    try:
        directory, calls = enclave_directory(node_config), calls_of(records)
    except VhtError as error:
        return pack_replies([Answer(None, error=error)], answering=answering)
    answers = []
    for call, deadline_s in calls:
        try:
            answers.append(_ask(call, directory, deadline_s))
        except VhtError as error:
            answers.append(Answer(None, error=error))
    return pack_replies(answers, answering=answering)
