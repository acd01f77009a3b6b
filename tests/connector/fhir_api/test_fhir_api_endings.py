"""Exports that are ended: their files go without anybody asking, and no record claims that they were made."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kit.fhir_api_client import Program
from kit.hospital import COLUMNS, Hospital, await_that
from kit.later_clock import Later

from connector.fhir_api.export_jobs import Job
from connector.fhir_api.service import WORKING
from connector.listeners.internal import internal_app
from connector.node import Node
from vht_federate.testing.asgi import AppClient

HOUR = timedelta(hours=1)


@contextmanager
def opened(hospital: Hospital, clock: Later, **permit: Any) -> Iterator[Program]:
    with Node(hospital.state, clock=clock) as node:
        node.start(enclaves=hospital.enclaves, sweep_every_s=3600.0)
        web = AppClient(internal_app(node), raise_app_exceptions=False)
        yield Program(node, web).register(hospital.permit(**({"columns": COLUMNS} | permit)))


def left(hospital: Hospital) -> list[Path]:
    return list((hospital.state / WORKING / "exports").rglob("*"))


def only_job(program: Program) -> Job:
    [job] = program.node.fhir_api.exports._jobs.values()
    return job


@pytest.mark.parametrize("end", ["expired", "revoked permit", "expired permit", "revoked client"])
def test_files_go_by_the_upkeep_alone(stocked: Hospital, end: str) -> None:
    clock = Later()
    ends = datetime.now(UTC) + (HOUR / 2 if end == "expired permit" else 24 * HOUR)
    with opened(stocked, clock, permit_id="permit-5", expires_at=ends) as program:
        token = program.token()
        program.await_export(program.export(token=token), token)
        program.node.expiry.sweep()
        assert left(stocked)
        if end == "expired":
            clock.ahead = HOUR + timedelta(seconds=1)
        elif end == "expired permit":
            clock.ahead = HOUR * 0.6  # before the files end
        elif end == "revoked permit":
            stocked.issuer.revoke("permit-5")
        else:
            operator = {"Authorization": f"Bearer {program.node.files.operator_token.read_text().strip()}"}
            program.web.post(f"/api/fhir-clients/{program.id}/revoke", headers=operator)
        program.node.expiry.sweep()
        assert left(stocked) == []


def test_an_issuer_out_of_reach_ends_no_export_that_is_done(stocked: Hospital) -> None:
    with opened(stocked, Later()) as program:
        token = program.token()
        program.await_export(program.export(token=token), token)
        stocked.issuer.stop()
        program.node.expiry.sweep()
        assert [path for path in left(stocked) if path.suffix == ".ndjson"]


def test_a_folder_of_no_job_goes_and_what_a_killed_process_left_of_views_too(stocked: Hospital) -> None:
    view = stocked.state / WORKING / "views" / "tmp1" / "resources.ndjson"
    view.parent.mkdir(parents=True)
    view.write_text("{}")
    with opened(stocked, Later()) as program:
        assert not view.exists()
        stray = stocked.state / WORKING / "exports" / "stray"
        stray.mkdir(parents=True)
        (stray / "Patient.0001.ndjson").write_text("{}")
        program.node.expiry.sweep()
        assert not stray.exists()


Halt = Callable[[str], tuple[threading.Event, threading.Event]]


@pytest.fixture
def halted(monkeypatch: pytest.MonkeyPatch) -> Halt:
    """Has the worker wait: before it begins to read (``view_for``), or in the middle (``everything``)."""

    def halt(where: str) -> tuple[threading.Event, threading.Event]:
        import connector.fhir_api.permit_view as module

        reached, go = threading.Event(), threading.Event()
        owner: Any = module.PermitViews if where == "view_for" else module.PermitView
        original = getattr(owner, where)

        def view_for(*args: Any, **more: Any) -> Any:
            if threading.current_thread().name == "vht-exports":
                reached.set()
                assert go.wait(300)
            return original(*args, **more)

        def everything(*args: Any, **more: Any) -> Iterator[Any]:
            for number, resource in enumerate(original(*args, **more)):
                if number == 5:
                    reached.set()
                    assert go.wait(300)
                yield resource

        monkeypatch.setattr(owner, where, {"view_for": view_for, "everything": everything}[where])
        return reached, go

    return halt


@pytest.mark.parametrize("where", ["view_for", "everything"])
@pytest.mark.parametrize("by", ["delete", "revoked client"])
def test_a_job_that_was_ended_makes_nothing(stocked: Hospital, halted: Halt, where: str, by: str) -> None:
    with opened(stocked, Later()) as program:
        token = program.token()
        reached, go = halted(where)
        status = urlsplit(program.export(token=token).headers["Content-Location"]).path
        assert reached.wait(300)
        job = only_job(program)
        if by == "delete":
            assert program.call("DELETE", status, token).status_code == 202
        else:
            operator = {"Authorization": f"Bearer {program.node.files.operator_token.read_text().strip()}"}
            program.web.post(f"/api/fhir-clients/{program.id}/revoke", headers=operator)
            program.node.expiry.sweep()
        go.set()
        exports = program.node.fhir_api.exports
        exports._waiting.put(None)
        assert exports._thread is not None
        await_that(lambda: not exports._thread.is_alive(), 60)
        assert (job.state, job.outputs, left(stocked)) == ("over", [], [])
    assert "fhir.exported" not in stocked.kinds()


def test_the_node_stops_in_the_middle_of_an_export(stocked: Hospital, halted: Halt) -> None:
    with opened(stocked, Later()) as program:
        token = program.token()
        reached, go = halted("view_for")
        program.export(token=token)
        assert reached.wait(300)
        job, exports = only_job(program), program.node.fhir_api.exports
        closing = threading.Thread(target=exports.close)
        closing.start()
        await_that(lambda: job.state == "over", 60)
        go.set()
        closing.join(60)
        assert not closing.is_alive()
        assert (job.state, job.outputs, exports.folder.exists()) == ("over", [], False)
    assert "fhir.exported" not in stocked.kinds()
