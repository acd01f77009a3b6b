"""``python -m connector.enclave.worker FD``: one visit's enclave. Started by ``connector.enclave.host``.

It takes its order from the control channel on file descriptor FD, opens the one socket that it answers on, closes
itself off from everything else (``isolation``) and says how far that went; below the level that is required it ends.
Then it recomputes the component's digest from the files on disk, sets the alarm, and only then runs the component's
code and reads the cohort. After ``ready`` it writes to nobody but the control channel and the courier it answers.
"""

import os
import signal
import socket
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connector.enclave.audit_hook import Fence
from connector.enclave.control_channel import Control
from connector.enclave.isolation import Isolation, close_off
from connector.enclave.job_registry import origin_of, package_of, registered_jobs
from connector.enclave.runtime_files import enclave_view
from connector.enclave.visit import EnclosedReport, VisitSpec
from vht_federate.errors import ComponentError, RefusedError, VhtError

if TYPE_CHECKING:
    from connector.enclave.request_handler import RequestHandler

__all__ = ["BREACHED", "main"]

BREACHED = 4  # exit code after code in the enclave tried to get out


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = Control(socket.socket(fileno=int(arguments[0])))
    try:
        order = control.order()
        spec = VisitSpec.model_validate(order["spec"])
        listener = _listen(Path(order["socket"]))
        points = registered_jobs({job for job, _ in spec.plan.calls()})
        _enclose(spec, Path(order["component"]), points, control)
        fence, requests = _prepare(spec, order, points, control)
    except VhtError as error:
        control.tell("failed", error=error.envelope())
        return 1
    except Exception as error:
        failure = VhtError(f"the enclave did not start ({type(error).__name__})", code="VHT-INTERNAL-ENCLAVE")
        control.tell("failed", error=failure.envelope())
        return 1
    control.tell("ready", **_introduction(spec))
    from connector.enclave.request_handler import ContainmentBreach

    try:
        requests.serve(listener)
    except ContainmentBreach:
        control.tell("breach", code=fence.breach)
        return BREACHED
    return 0


def _enclose(spec: VisitSpec, component: Path, points: dict[str, EntryPoint], control: Control) -> None:
    """Close this process off while it has one thread, and tell how. Raises RefusedError VHT-REFUSED-ISOLATION.

    Links between the processes of an enclave that spans several open before this, and are its only further sockets.
    """
    packages = {package_of(point) for point in points.values()}
    origins = {name: origin_of(point) for name, point in points.items()}
    view = enclave_view(spec.folder, component, closed=spec.closed or spec.folder.parent, packages=packages)
    isolation = close_off(view, spec.visit, open_devices=_open_gpu if view.has_gpu else _nothing)
    report = EnclosedReport(isolation=isolation.level, walls=isolation.walls, jobs=origins)
    control.tell("enclosed", **report.model_dump(mode="json"))
    control.tie()
    _require_level(isolation, spec)


def _nothing() -> None:
    """This machine has no device to open."""


def _open_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")


def _require_level(isolation: Isolation, spec: VisitSpec) -> None:
    if not isolation.level.covers(spec.isolation):
        raise RefusedError(
            f"this machine closes an enclave off by {isolation.level} alone, and {spec.isolation} is required",
            code="VHT-REFUSED-ISOLATION",
            hint="see what is missing with 'vht node isolation'; enclave_isolation in node.toml sets what is required",
        )


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(64)
    return listener


def _prepare(
    spec: VisitSpec, order: dict[str, Any], points: dict[str, EntryPoint], control: Control
) -> "tuple[Fence, RequestHandler]":
    """Everything up to readiness, in the order that keeps unapproved code away from data."""
    from vht_federate.components.digest import ComponentFiles

    files = ComponentFiles.read(Path(order["component"]))
    files.expect(spec.component.digest)
    component = files.component()
    if (component.name, component.version) != (spec.component.name, spec.component.version):
        raise ComponentError("the approved digest belongs to another component or version", code="VHT-COMPONENT-NAME")

    import torch

    from connector.enclave.cohort import read_cohort
    from connector.enclave.reply_store import Replies
    from connector.enclave.request_handler import RequestHandler
    from vht_federate.components.job import VisitData
    from vht_federate.components.loader import build_model
    from vht_federate.privacy.noise import SecureNoise

    torch.set_num_threads(1)
    jobs = {name: point.load() for name, point in points.items()}
    fence = Fence(spec.folder, spec.closed or spec.folder.parent)
    fence.close()
    control.tell("loading")
    build_model(files, spec.component.profile)
    _be_silent()
    data = VisitData(
        component=component,
        profile=spec.component.profile,
        plan=spec.plan,
        codebook=spec.codebook,
        cohort=read_cohort(spec.cohort, component, spec.component.profile),
        noise=SecureNoise(),
        build_model=lambda: build_model(files, spec.component.profile),
    )
    replies = Replies(spec.folder / "replies.sqlite")
    return fence, RequestHandler(spec, order["token"], data, jobs, replies, control, fence)


def _be_silent() -> None:
    """Whatever is printed from here on may hold a patient's value: nobody gets it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _introduction(spec: VisitSpec) -> dict[str, Any]:
    import torch

    return {
        "visit": spec.visit,
        "pid": os.getpid(),
        "component_digest": spec.component.digest,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
