"""The connector's side of enclaves: starts one process per visit, answers its questions, stops it. No torch here.

A process that dies, misbehaves on the control channel, or whose code tried to get out is reported once to ``on_lost``.
Its socket and token are gone before that, so that no courier reaches what is not there.
"""

import contextlib
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from connector.enclave.visit import EnclaveInfo, EnclosedReport, Gate, VisitSpec
from vht_federate.errors import (
    EgressError,
    InputError,
    RefusedError,
    UnavailableError,
    VhtError,
    WireError,
    error_from_envelope,
)
from vht_federate.files import replace_file
from vht_federate.framing import receive_frame, send_frame

__all__ = ["EnclaveHost"]

log = logging.getLogger("vht.node.enclave")

_SOCKET_PATH_LIMIT = 100  # sockaddr_un holds 108 bytes
_INHERITED = (
    "PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES",
    "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE",
)  # fmt: skip
_LOADING_FAILURES = {
    "VHT-COMPONENT-ENTRY": "the component's code does not load, or builds no model",
    "VHT-COHORT-TENSORS": "the cohort of this visit is not usable",
    "VHT-EGRESS-FILE": "the component's code tried to get out while it was loaded",
    "VHT-EGRESS-NETWORK": "the component's code tried to get out while it was loaded",
    "VHT-EGRESS-PROGRAM": "the component's code tried to get out while it was loaded",
    "VHT-INTERNAL-ENCLAVE": "the enclave did not start",
}
_BREACHES = ("VHT-EGRESS-FILE", "VHT-EGRESS-NETWORK", "VHT-EGRESS-PROGRAM")
_CODE = re.compile(r"VHT-[A-Z]{2,16}(-[A-Z]{2,16}){0,2}")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(eq=False)
class _Running:
    """One child and what the host knows of it."""

    spec: VisitSpec
    gate: Gate
    process: "subprocess.Popen[bytes]"
    channel: socket.socket
    enclosed: EnclosedReport | None = None  # said once, before the component's code is loaded
    loading: bool = False  # from here on a component's code may speak in the enclave's name
    settled: threading.Event = field(default_factory=threading.Event)  # ready, failed or gone
    info: EnclaveInfo | None = None
    failure: VhtError | None = None
    stopping: bool = False
    refusing: bool = False  # the gate's last answer was no
    idle: threading.Event = field(default_factory=threading.Event)  # the courier has its answer


class EnclaveHost:
    """All enclaves of one connector. ``run_dir``: a short private folder for sockets and tokens.

    ``on_lost(visit, error)`` is called from a thread of this host when a ready enclave ends that nobody stopped.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        on_lost: Callable[[str, VhtError], None] | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        self.run_dir = run_dir
        self.on_lost = on_lost
        self._start_timeout_s = start_timeout_s
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()

    def start(self, visit: VisitSpec, component_dir: Path, gate: Gate) -> EnclaveInfo:
        """Start the enclave of ``visit`` on the component in ``component_dir``; returns when it is ready.

        Raises the error for which the enclave would not start (ComponentError VHT-COMPONENT-DIGEST, CohortError …),
        UnavailableError VHT-UNAVAILABLE-ENCLAVE where it does not become ready in time.
        """
        token = secrets.token_urlsafe(32)
        enclave = self._spawn(visit, gate)
        threading.Thread(target=self._converse, args=(enclave,), name=f"vht-enclave-{visit.visit}", daemon=True).start()
        order = {
            "spec": visit.model_dump(mode="json"),
            "component": str(component_dir.resolve()),
            "socket": str(self._path(visit.visit, "sock")),
            "token": token,
        }
        with contextlib.suppress(OSError):  # a child that is gone already shows in ``settled``
            send_frame(enclave.channel, order)
        in_time = enclave.settled.wait(self._start_timeout_s)
        if enclave.info is None or enclave.stopping:
            self.stop(visit.visit)
            late = "it was not ready in time" if not in_time else "it ended before it was ready"
            raise enclave.failure or UnavailableError(
                f"the enclave did not start: {late}", code="VHT-UNAVAILABLE-ENCLAVE"
            )
        replace_file(self._path(visit.visit, "token"), token.encode())
        log.info("enclave ready", extra={"facts": {"visit": visit.visit, "isolation": enclave.info.isolation}})
        return enclave.info

    def stop(self, visit_id: str) -> None:
        """End the enclave of ``visit_id`` now, in the middle of whatever it does. One that is not there is fine.

        Only a refusal on its way to the courier is waited for, a second at most: the coordinator learns the reason.
        """
        with self._lock:
            enclave = self._running.get(visit_id)
            if enclave is not None:
                enclave.stopping = True
        if enclave is not None:
            if enclave.refusing:
                enclave.idle.wait(1.0)
            self._end(enclave)

    def running(self) -> tuple[str, ...]:
        """Visits whose enclave is ready."""
        with self._lock:
            return tuple(sorted(name for name, enclave in self._running.items() if enclave.info is not None))

    def close(self) -> None:
        """Stop all."""
        with self._lock:
            visits = list(self._running)
        for visit in visits:
            self.stop(visit)

    # --- parts --------------------------------------------------------------------------------------------------

    def _path(self, visit_id: str, suffix: str) -> Path:
        return self.run_dir / f"{visit_id}.{suffix}"

    def _spawn(self, visit: VisitSpec, gate: Gate) -> _Running:
        if len(os.fsencode(self._path(visit.visit, "sock"))) > _SOCKET_PATH_LIMIT or "/" in visit.visit:
            raise InputError("the path of this visit's socket is too long", code="VHT-INPUT-VISIT")
        host_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with self._lock, child_end:
            if visit.visit in self._running:
                host_end.close()
                raise RefusedError("this visit has an enclave already", code="VHT-REFUSED-ENCLAVE")
            self._path(visit.visit, "sock").unlink(missing_ok=True)
            visit.folder.mkdir(parents=True, exist_ok=True)
            with (visit.folder / "enclave.log").open("ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-B", "-m", "connector.enclave.worker", str(child_end.fileno())],
                    pass_fds=(child_end.fileno(),),
                    env=_environment(visit.folder),
                    cwd=visit.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            enclave = _Running(visit, gate, process, host_end)
            self._running[visit.visit] = enclave
        return enclave

    def _converse(self, enclave: _Running) -> None:
        """Answer one enclave until its channel closes."""
        try:
            while True:
                header, _ = receive_frame(enclave.channel, max_body=0)
                self._hear(enclave, header)
        except (VhtError, OSError) as error:
            if isinstance(error, VhtError) and error.code != "VHT-WIRE-TRUNCATED":
                enclave.failure = enclave.failure or error
        finally:
            self._end(enclave)
            enclave.settled.set()
            self._report(enclave)

    def _hear(self, enclave: _Running, header: dict[str, Any]) -> None:
        kind = header.pop("kind", None)
        if kind == "enclosed" and enclave.enclosed is None:
            enclave.enclosed = _report_of(header)
        elif kind == "ready" and enclave.info is None:
            enclave.info = _info_of(header, enclave)
            enclave.settled.set()
        elif kind == "loading":
            enclave.loading = True
        elif kind == "failed":
            enclave.failure = _failure_of(header, enclave)
        elif kind == "breach":
            enclave.failure = EgressError("code in the enclave tried to get out", code=_breach_of(header))
        elif kind in ("begin", "release", "refused"):
            enclave.idle.clear()
            answer = _judged(enclave, kind, header)
            enclave.refusing = not answer["ok"]
            send_frame(enclave.channel, answer)
        elif kind == "answered":
            enclave.idle.set()
        else:
            raise _unknown()

    def _end(self, enclave: _Running) -> None:
        """Cut the tether, reap the child, remove its files. Twice is fine."""
        with contextlib.suppress(OSError):
            enclave.channel.shutdown(socket.SHUT_RDWR)
        try:
            enclave.process.wait(timeout=3.0)
        except subprocess.TimeoutExpired:
            enclave.process.kill()
            enclave.process.wait()
        with self._lock:
            current = self._running.get(enclave.spec.visit) is enclave
            if current:
                del self._running[enclave.spec.visit]
                for suffix in ("sock", "token"):
                    self._path(enclave.spec.visit, suffix).unlink(missing_ok=True)

    def _report(self, enclave: _Running) -> None:
        enclave.channel.close()
        if enclave.stopping or enclave.info is None:
            return
        error = enclave.failure or UnavailableError(
            "the enclave of this visit ended", code="VHT-UNAVAILABLE-ENCLAVE", hint="what it drew stays spent"
        )
        log.warning("enclave lost", extra={"facts": {"visit": enclave.spec.visit, "code": error.code}})
        if self.on_lost is not None:
            self.on_lost(enclave.spec.visit, error)


def _judged(enclave: _Running, kind: str, header: dict[str, Any]) -> dict[str, Any]:
    """The gate's answer to one question. A gate that fails says no."""
    visit, job, round_ = enclave.spec.visit, str(header.get("job")), int(header.get("round") or 0)
    try:
        if kind == "begin":
            enclave.gate.begin(visit, job, round_, str(header["request_sha256"]))
        elif kind == "release":
            enclave.gate.release(visit, job, round_, str(header["output_sha256"]), int(header["output_bytes"]))
        else:
            enclave.gate.refused(visit, job, round_, _code_of(header))
    except VhtError as error:
        return {"ok": False, "error": error.envelope()}
    except Exception as error:
        log.exception("the gate failed", extra={"facts": {"visit": visit, "job": job, "round": round_}})
        return {"ok": False, "error": VhtError(f"the gate failed ({type(error).__name__})").envelope()}
    return {"ok": True}


def _failure_of(header: dict[str, Any], enclave: _Running) -> VhtError:
    """Why an enclave did not start: in its own words until it loads a component's code, which has seen the cohort."""
    error = error_from_envelope(dict(header.get("error") or {}))
    if not enclave.loading:
        return error
    code = error.code if error.code in _LOADING_FAILURES else "VHT-INTERNAL-ENCLAVE"
    return error_from_envelope({"code": code, "message": _LOADING_FAILURES[code]})


def _breach_of(header: dict[str, Any]) -> str:
    return next((code for code in _BREACHES if code == header.get("code")), "VHT-EGRESS")


def _code_of(header: dict[str, Any]) -> str:
    """A code, and no sentence in its place."""
    code = str(header["code"])
    return code if _CODE.fullmatch(code) else "VHT-INTERNAL-ENCLAVE"


def _report_of(header: dict[str, Any]) -> EnclosedReport:
    try:
        return EnclosedReport.model_validate(header)
    except ValidationError as error:
        raise _unknown() from error


def _info_of(header: dict[str, Any], enclave: _Running) -> EnclaveInfo:
    report, spec = enclave.enclosed, enclave.spec
    if report is None or not report.isolation.covers(spec.isolation):
        raise WireError("an enclave is ready that is not closed off as required", code="VHT-WIRE-CONTROL")
    try:
        info = EnclaveInfo(isolation=report.isolation, walls=report.walls, jobs=report.jobs, **header)
    except TypeError as error:
        raise _unknown() from error
    if (info.visit, info.pid, info.component_digest) != (spec.visit, enclave.process.pid, spec.component.digest):
        raise WireError("an enclave introduced itself as another", code="VHT-WIRE-CONTROL")
    return info


def _unknown() -> WireError:
    return WireError("an enclave said something unknown", code="VHT-WIRE-CONTROL")


def _environment(folder: Path) -> dict[str, str]:
    """Nothing secret, one thread, and temporary files in the visit's own folder."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {
        **inherited,
        **dict.fromkeys(_THREADS, "1"),
        "TMPDIR": str(folder),
        "CUDA_CACHE_PATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
