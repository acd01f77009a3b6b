"""``python -m connector.enclave.worker FD``: one visit's enclave. Started by ``connector.enclave.host``.

It moves into a network of its own before anything else, takes its order from the control channel on file descriptor
FD, recomputes the component's digest from the files on disk, closes the fence, and only then runs the component's code
and reads the cohort. After ``ready`` it writes to nobody but the control channel and the courier it answers.
"""

import os
import signal
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connector.enclave.control_channel import Control
from connector.enclave.isolation import Fence, enter_own_network
from vht_federate.errors import ComponentError, VhtError

if TYPE_CHECKING:
    from connector.enclave.request_handler import RequestHandler
    from connector.enclave.visit import VisitSpec

__all__ = ["BREACHED", "main"]

BREACHED = 4  # exit code after code in the enclave tried to get out


def main(arguments: list[str]) -> int:
    isolated = enter_own_network()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = Control(socket.socket(fileno=int(arguments[0])))
    try:
        order = control.order()
        listener = _listen(Path(order["socket"]))
        spec, fence, requests = _prepare(order, control)
    except VhtError as error:
        control.tell("failed", error=error.envelope())
        return 1
    except Exception as error:
        failure = VhtError(f"the enclave did not start ({type(error).__name__})", code="VHT-INTERNAL-ENCLAVE")
        control.tell("failed", error=failure.envelope())
        return 1
    control.tell("ready", **_info(spec, isolated))
    from connector.enclave.request_handler import ContainmentBreach

    try:
        requests.serve(listener)
    except ContainmentBreach:
        control.tell("breach", code=fence.breach)
        return BREACHED
    return 0


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(8)
    return listener


def _prepare(order: dict[str, Any], control: Control) -> "tuple[VisitSpec, Fence, RequestHandler]":
    """Everything up to readiness, in the order that keeps unapproved code away from data."""
    from connector.enclave.visit import VisitSpec
    from vht_federate.components.digest import ComponentFiles

    spec = VisitSpec.model_validate(order["spec"])
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
    jobs = _jobs({job for job, _ in spec.plan.calls()})
    fence = Fence(spec.folder, spec.closed or spec.folder.parent)
    fence.close()
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
    return spec, fence, RequestHandler(spec, order["token"], data, jobs, replies, control, fence)


def _jobs(names: set[str]) -> dict[str, Any]:
    from importlib.metadata import entry_points

    points = {point.name: point for point in entry_points(group="vht.enclave_jobs")}
    missing = sorted(names - set(points))
    if missing:
        raise ComponentError(f"this node has no job {', '.join(missing)}", code="VHT-COMPONENT-JOB")
    return {name: points[name].load() for name in sorted(names)}


def _be_silent() -> None:
    """Whatever is printed from here on may hold a patient's value: nobody gets it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _info(spec: "VisitSpec", isolated: bool) -> dict[str, Any]:
    import torch

    from connector.enclave.visit import EnclaveInfo

    return asdict(
        EnclaveInfo(
            visit=spec.visit,
            pid=os.getpid(),
            component_digest=spec.component.digest,
            isolation="network-namespace+audit-hook" if isolated else "audit-hook",
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
