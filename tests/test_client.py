"""What a peer answers comes back as the same error, with the time at which the same may be asked again."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from kit.scripted_service import served

import vht_federate.client as client_module
from vht_federate.client import Client, ask_each
from vht_federate.errors import UnavailableError, WireError


def test_a_service_that_says_when_to_ask_again_is_asked_again_with_a_new_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    clock = SimpleNamespace(sleep=waits.append, monotonic=lambda: sum(waits))
    monkeypatch.setattr(client_module, "time", clock)
    busy = UnavailableError("at work", code="VHT-UNAVAILABLE-BUSY", retry_after_s=15)
    answers: list[object] = []
    with served(tmp_path) as service:
        service.answers["/count"] = [busy, busy, {"count": 7}]
        numbers = iter("abc")
        with Client(service.url, service.ca, prove=lambda *_: next(numbers)) as client:
            assert ask_each(["h1"], lambda _: answers.append(client.get("/count"))) == {}
    assert answers == [{"count": 7}]
    assert service.proofs == ["a", "b", "c"]
    assert waits == [0.0, 15.0, 15.0]


@pytest.mark.parametrize("seconds", [0, 15, None])
def test_an_error_has_the_seconds_that_its_answer_names(seconds: int | None, tmp_path: Path) -> None:
    with served(tmp_path) as service, Client(service.url, service.ca) as client:
        service.answers["/"] = [UnavailableError("at work", retry_after_s=seconds)]
        with pytest.raises(UnavailableError) as caught:
            client.post("/", json={})
    assert caught.value.retry_after_s == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "1.5", "9" * 9, "٣", "", None])
def test_what_names_no_seconds_says_nothing(text: str | None) -> None:
    assert client_module._seconds(text) is None


def test_an_answer_that_is_no_json_is_a_typed_error(tmp_path: Path) -> None:
    with served(tmp_path) as service, Client(service.url, service.ca) as client:
        service.answers["/"] = ["<html>"]
        with pytest.raises(WireError) as caught:
            client.get("/")
    assert caught.value.code == "VHT-WIRE-HTTP"
