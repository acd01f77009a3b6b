"""A server's own word decides whether it is asked again: the codes of its OperationOutcome, else its status."""

import json
from pathlib import Path
from typing import Any

import pytest
from kit.bulk_data_server import Failure
from kit.bulk_pulls import Serve, everything, pull, quick, resources, source

from connector.fhir.sources.operation_outcome import TRANSIENT, outcome_of
from connector.fhir.sources.retry import RetryPolicy
from vht_federate.errors import UnavailableError

# phase: where the server fails, and how it is pulled
PHASES = {
    "kick-off": ("/fhir/$export", "export"),
    "poll": ("/jobs/", "export"),
    "download": ("/files/Observation", "export"),
    "search": ("/fhir/Observation", "search"),
}
every_phase = pytest.mark.parametrize("phase", sorted(PHASES))


def outcome(*codes: str, severity: str = "error") -> bytes:
    issues = [{"severity": severity, "code": code, "diagnostics": "of patient 31.4"} for code in codes]
    return json.dumps({"resourceType": "OperationOutcome", "issue": issues}).encode()


@every_phase
@pytest.mark.parametrize(
    ("status", "code"),
    [(500, code) for code in sorted(TRANSIENT)]
    + [(408, "transient"), (409, "lock-error"), (400, "timeout"), (404, "transient")],
)
def test_what_a_server_calls_transient_is_asked_for_again_whatever_the_status(
    serve: Serve, tmp_path: Path, phase: str, status: int, code: str
) -> None:
    path, mode = PHASES[phase]
    server = serve(failures=[Failure(path, status, outcome(code), "7")] * 2)
    waits: list[float] = []
    pulled = pull(source(server, mode=mode, longest_poll_s=0.1), tmp_path, pace=quick(waits))
    assert resources(pulled) == everything(server)
    assert sorted(waits)[-2:] == [7.0, 7.0], "as Retry-After says"
    assert len(server.jobs) == (mode == "export")
    assert not server.failures


@every_phase
@pytest.mark.parametrize(
    ("status", "body", "asked"),
    [
        (503, outcome("not-supported"), 1),
        (429, outcome("too-costly", "transient"), 1),
        (500, outcome("forbidden"), 1),
        (500, outcome("processing"), 1),  # the root of all: the status decides
        (503, outcome("processing"), 4),
        (503, outcome("not-supported", severity="warning"), 4),
        (500, outcome("transient", severity="information"), 1),
        (500, outcome("transient", severity="error").replace(b"OperationOutcome", b"Observation"), 1),
        (500, outcome("no-code-of-r4"), 1),
        (408, b"", 4),
        (504, b"<html>gateway</html>", 4),
        (500, b"\xff\xfe", 1),
        (500, b'{"resourceType":"OperationOutcome","issue":[7,{"severity":"error","code":["transient"]}]}', 1),
        (500, outcome("transient") + b" " * (65 << 10), 1),  # longer than any that is read
    ],
)
def test_what_it_does_not_is_final_unless_its_status_says_otherwise(
    serve: Serve, tmp_path: Path, phase: str, status: int, body: bytes, asked: int
) -> None:
    path, mode = PHASES[phase]
    server = serve(failures=[Failure(path, status, body)] * 9)
    with pytest.raises(UnavailableError) as caught:
        pull(source(server, mode=mode, attempts=4), tmp_path)
    assert 9 - len(server.failures) == asked
    final = "VHT-UNAVAILABLE-SOURCE-JOB" if phase == "poll" else "VHT-UNAVAILABLE-SOURCE-REFUSED"
    assert caught.value.code == ("VHT-UNAVAILABLE-SOURCE" if asked > 1 else final)
    assert str(status) in caught.value.message
    assert "31.4" not in caught.value.message + caught.value.hint


def test_the_codes_of_an_outcome_are_told_and_nothing_else_of_it(serve: Serve, tmp_path: Path) -> None:
    server = serve(failures=[Failure("/jobs/", 500, outcome("not-supported", "value", "Meier"))])
    with pytest.raises(UnavailableError, match=r"answers 500 \(not-supported, value\) to an export"):
        pull(source(server), tmp_path)


@every_phase
def test_patience_is_bounded_in_number_and_the_deadline_holds_whatever_retry_after_says(
    serve: Serve, tmp_path: Path, phase: str
) -> None:
    path, mode = PHASES[phase]
    server = serve(failures=[Failure(path, 500, outcome("throttled"))] * 50)
    waits: list[float] = []
    with pytest.raises(UnavailableError, match=r"500 \(throttled\)") as caught:
        pull(source(server, mode=mode, attempts=5), tmp_path / "a", pace=quick(waits))
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE"
    assert 50 - len(server.failures) == 5
    assert sum(waits) < 5 * 60

    server.failures[:] = [Failure(path, 500, outcome("throttled"), "1000000")] * 50
    waits.clear()
    with pytest.raises(UnavailableError) as caught:
        pull(source(server, mode=mode), tmp_path / "b", pace=quick(waits))
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-DEADLINE"
    assert 1e6 not in waits


def test_a_job_that_its_server_puts_off_is_kept_and_asked_for_by_the_next_pull(serve: Serve, tmp_path: Path) -> None:
    server = serve(failures=[Failure("/jobs/", 500, outcome("transient"))] * 6)
    with pytest.raises(UnavailableError):
        pull(source(server), tmp_path)
    pulled = pull(source(server), tmp_path)
    assert (pulled.resumed, len(server.jobs)) == (True, 1)
    assert resources(pulled) == everything(server)


def test_a_job_that_its_server_puts_off_for_ever_is_begun_anew_after_the_time_of_a_pull(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(failures=[Failure("/jobs/job-0", 500, outcome("transient"))] * 12)
    settings, late = source(server), quick()
    with pytest.raises(UnavailableError) as caught:
        pull(settings, tmp_path)
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE"
    now = late.now()
    late.now = lambda: now.replace(year=now.year + 1)
    with pytest.raises(UnavailableError) as caught:
        pull(settings, tmp_path, pace=late)
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-JOB"
    assert resources(pull(settings, tmp_path)) == everything(server)
    assert len(server.jobs) == 2


def test_a_job_whose_poll_wants_another_authorization_is_not_thrown_away(serve: Serve, tmp_path: Path) -> None:
    server = serve(failures=[Failure("/jobs/", 403, outcome("forbidden"))])
    with pytest.raises(UnavailableError) as caught:
        pull(source(server), tmp_path)
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-REFUSED"
    assert pull(source(server), tmp_path).resumed
    assert len(server.jobs) == 1


def test_an_error_that_drips_ends_at_the_deadline(serve: Serve, tmp_path: Path) -> None:
    server = serve(endless="/fhir/Patient/$export", endless_status=500, piece=1, drip_s=0.01)
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0 if server.served.get("endless") else 0.0
        return now[0]

    with pytest.raises(UnavailableError) as caught:
        pull(source(server, level="patient"), tmp_path, pace=RetryPolicy(20.0, clock=clock, sleep=lambda _: None))
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-DEADLINE"


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"{", b'{"resourceType":"OperationOutcome","issue":{}}'])
def test_what_is_no_outcome_says_nothing(body: bytes) -> None:
    assert outcome_of(body).transient is None


def test_one_error_that_does_not_pass_makes_the_answer_final() -> None:
    cases: list[tuple[tuple[str, ...], Any]] = [
        (("transient", "timeout"), True),
        (("transient", "processing"), True),
        (("transient", "not-found"), False),
        (("processing",), None),
    ]
    for codes, verdict in cases:
        assert outcome_of(outcome(*codes)).transient is verdict
