"""Handles requests in the enclave: judges each call that a courier brings, runs the job, and lets the answer leave.

Nothing a courier sends is trusted. Order for a new round: token, plan, record of replies, the job's own checks; at the
first use of randomness the connector's ``begin``; then noise; the connector's ``release``; the record; the answer.
"""

import hmac
import math
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from connector.enclave.audit_hook import Fence
from connector.enclave.control_channel import Control
from connector.enclave.reply_store import Replies
from connector.enclave.visit import VisitSpec
from connector.enclave.waiting_calls import WaitingCall, WaitingCalls
from vht_federate.components.job import Job, JobCall, JobReply, VisitData
from vht_federate.errors import EgressError, InputError, RefusedError, VhtError, WireError
from vht_federate.framing import Call, Reply, send_frame
from vht_federate.privacy.noise import Float32Noise, NoiseSource
from vht_federate.signing.canonical import canonical_bytes
from vht_federate.tensors import read_tensors, write_tensors

__all__ = ["ContainmentBreach", "RequestHandler", "RoundNoise"]

MAX_CALL_BYTES = 1 << 28
_PATIENCE_S = 30.0
_COMPONENT_PREFIX = "vht_component_"


class ContainmentBreach(Exception):
    """Code in this enclave tried to get out. The visit ends."""


class RoundNoise:
    """Randomness for one round. Its first use begins the round; after the round it gives nothing."""

    def __init__(self, source: NoiseSource, begin: Callable[[], None]) -> None:
        self._source, self._begin = source, begin
        self.begun = False
        self.closed = False

    def _ready(self) -> NoiseSource:
        if self.closed:
            raise EgressError("the round of this noise is over", code="VHT-EGRESS-NOISE")
        if not self.begun:
            self._begin()
            self.begun = True
        return self._source

    def gaussian(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return self._ready().gaussian(shape)

    def gaussian_float32(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        source = self._ready()
        if isinstance(source, Float32Noise):
            return source.gaussian_float32(shape)
        return source.gaussian(shape).astype(np.float32)

    def uniform(self, size: int) -> NDArray[np.float64]:
        return self._ready().uniform(size)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        return self._ready().poisson_sample(population, rate)


class RequestHandler:
    """Answers the calls of one visit, one at a time."""

    def __init__(
        self,
        spec: VisitSpec,
        token: str,
        data: VisitData,
        jobs: Mapping[str, Job],
        replies: Replies,
        control: Control,
        fence: Fence,
    ) -> None:
        self._spec, self._token, self._data, self._jobs = spec, token, data, jobs
        self._replies, self._control, self._fence = replies, control, fence

    def serve(self, listener: socket.socket) -> None:
        """Until the process ends. Raises ContainmentBreach."""
        waiting = WaitingCalls(listener, self._opens, max_body=MAX_CALL_BYTES)
        while True:
            call = waiting.take()
            with call.connection:
                call.connection.settimeout(_PATIENCE_S)  # for all of the answer
                self.attend(call)
            self._control.tell("answered")
            if self._fence.breach:
                raise ContainmentBreach(self._fence.breach)

    def attend(self, call: WaitingCall) -> None:
        """Answer one call. A peer that goes away, or sends what nobody foresaw, is no concern."""
        connection = call.connection
        try:
            try:
                reply = self.answer(*call.frame())
            except VhtError as error:
                send_frame(connection, {"ok": False, "error": error.envelope()})
                return
            except OSError:
                raise
            except Exception as error:
                failure = VhtError(f"the enclave failed ({type(error).__name__})", code="VHT-INTERNAL-ENCLAVE")
                send_frame(connection, {"ok": False, "error": failure.envelope()})
                return
            send_frame(connection, {"ok": True, "result": reply.result}, reply.tensors)
        except OSError:
            return

    def answer(self, header: dict[str, Any], body: bytes) -> Reply:
        """Raises the typed error of a refusal, which the connector has logged."""
        job, round_ = header.get("job"), header.get("round")
        try:
            return self._run(header, body)
        except VhtError as error:
            if error is not self._control.refusal:
                job_name = job if isinstance(job, str) else ""
                self._control.ask("refused", job=job_name, round=_integer(round_) or 0, code=error.code)
            raise

    # --- parts --------------------------------------------------------------------------------------------------

    def _run(self, header: dict[str, Any], body: bytes) -> Reply:
        call, request_sha256 = self._read(header, body)
        stored_reply = self._replies.find(call.job, call.round, request_sha256)
        if stored_reply is not None:
            return stored_reply

        def begin() -> None:
            self._control.ask("begin", job=call.job, round=call.round, request_sha256=request_sha256)
            self._replies.begun(call.job, call.round, request_sha256)

        noise = RoundNoise(self._data.noise, begin)
        reply = self._checked(self._work(call, noise), noise)
        size = len(reply.content())
        self._control.ask("release", job=call.job, round=call.round, output_sha256=reply.sha256(), output_bytes=size)
        self._replies.released(call.job, call.round, reply)
        return reply

    def _read(self, header: dict[str, Any], body: bytes) -> tuple[JobCall, str]:
        if not self._opens(header):
            raise RefusedError("this token does not open this enclave", code="VHT-REFUSED-TOKEN")
        job, round_, params = header.get("job"), _integer(header.get("round")), header.get("params", {})
        if header.get("visit") != self._spec.visit:
            raise RefusedError("this enclave serves another visit", code="VHT-REFUSED-VISIT")
        if not isinstance(job, str) or round_ is None or not isinstance(params, dict):
            raise WireError("a call names a job, a round and parameters", code="VHT-WIRE-CALL")
        if (job, round_) not in self._spec.plan.calls() or job not in self._jobs:
            raise RefusedError("this call is not in the study's plan", code="VHT-REFUSED-UNPLANNED")
        request_sha256 = Call(self._spec.visit, job, round_, params, body).sha256()
        return JobCall(job, round_, params, _tensors(body)), request_sha256

    def _opens(self, header: dict[str, Any]) -> bool:
        token = header.get("token")
        return isinstance(token, str) and hmac.compare_digest(_raw(token), _raw(self._token))

    def _work(self, call: JobCall, noise: RoundNoise) -> JobReply:
        """Run the job. Whatever goes wrong inside comes out without a word that could hold a value."""
        data = replace(self._data, noise=noise, released=self._replies.results())
        try:
            reply = self._jobs[call.job](data, call)
            if not isinstance(reply, JobReply):
                raise EgressError("a job answers with a JobReply", code="VHT-EGRESS-REPLY")
            return reply
        except VhtError as error:
            if _through_component(error.__traceback__):
                raise _failed(call) from None
            raise
        except Exception:
            raise _failed(call) from None
        finally:
            noise.closed = True

    def _checked(self, reply: JobReply, noise: RoundNoise) -> Reply:
        if self._fence.breach:
            raise EgressError("code in this enclave tried to get out", code=self._fence.breach)
        if not noise.begun:
            raise EgressError("an answer without noise does not leave", code="VHT-EGRESS-NOISE")
        arrays = {name: np.asarray(value) for name, value in reply.tensors.items()}
        finite = all(value.dtype.kind in "fiub" and np.isfinite(value).all() for value in arrays.values())
        try:
            result = _plain(reply.result)
            canonical_bytes(result)
        except (InputError, TypeError) as error:
            raise EgressError("an answer is JSON without NaN", code="VHT-EGRESS-NONFINITE") from error
        if not finite or not isinstance(result, dict):
            raise EgressError("an answer's tensors are finite numbers", code="VHT-EGRESS-NONFINITE")
        return Reply(result, write_tensors(arrays) if arrays else b"")


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _tensors(body: bytes) -> dict[str, NDArray[Any]]:
    if not body:
        return {}
    return read_tensors(body, WireError("a call's tensors are not safetensors", code="VHT-WIRE-TENSORS"))


def _plain(value: Any) -> Any:
    """JSON values only: numpy scalars become Python's. Raises TypeError for anything else, NaN included."""
    if isinstance(value, dict):
        return {_word(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError


def _word(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError
    return key


def _failed(call: JobCall) -> VhtError:
    return VhtError(
        f"the job {call.job} failed in round {call.round}",
        code="VHT-INTERNAL-JOB",
        hint="what went wrong stays in the enclave; try the component on synthetic data",
    )


def _through_component(traceback: TracebackType | None) -> bool:
    """True where an error passed through the component's own code, which may have written its message."""
    while traceback is not None:
        if str(traceback.tb_frame.f_globals.get("__name__", "")).startswith(_COMPONENT_PREFIX):
            return True
        traceback = traceback.tb_next
    return False
