"""A hospital's log that was restored, or written anew, between two publications."""

import shutil
from pathlib import Path

import pytest
from kit.hostile_table import Answered
from kit.publishable_release import Platform, Publishable

from vht_federate.central.admission import Admission
from vht_federate.errors import PublicationError
from vht_federate.evidence.log import EvidenceLog


def _restored(root: Path, first: Publishable, *, new_keys: bool = False) -> Publishable:
    """Another study with the keys of the ``first``, on hospitals' logs that know nothing of it."""
    study = Publishable(root)
    for log in study.logs.values():
        log.close()
    shutil.rmtree(root / "logs")
    study.issuer, study.user, study.coordinator = first.issuer, first.user, first.coordinator
    study.node_keys = study.node_keys if new_keys else first.node_keys
    study.logs = {
        name: EvidenceLog(root / "logs" / name, key, name, study._tick) for name, key in study.node_keys.items()
    }
    study.permit = study._permit()
    study.request = study._request().model_copy(update={"codebook": study.request.codebook})
    return study


@pytest.mark.parametrize(
    "walled",
    [
        pytest.param(True, marks=pytest.mark.hostile("forked")),
        pytest.param(False, marks=pytest.mark.hostile("forked", control=True)),
    ],
)
def test_the_platform_refuses_a_log_that_does_not_go_on_from_what_was_published(
    walled: bool, platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: Answered
) -> None:
    if not walled:
        monkeypatch.setattr(Admission, "_compare_logs", lambda *_: None)
    with Publishable(tmp_path / "first") as first:
        first.trust.write(platform.trust)
        first.play()
        platform.send(first.bundle(tmp_path / "a"))
        for log in first.logs.values():
            log.append("node.started", {"version": "0"})
        platform.send(first.bundle(tmp_path / "b"))  # the same log, which went on
    with _restored(tmp_path / "second", first) as second:
        forked = second.play().bundle(tmp_path / "c")
    if not walled:
        assert platform.send(forked)
        return
    with pytest.raises(PublicationError, match="restored from an older copy") as caught:
        platform.send(forked)
    assert caught.value.code == "VHT-PUBLICATION-EVIDENCE"
    answered(caught.value.code)


def test_a_hospital_that_began_anew_with_a_new_key_publishes(platform: Platform, tmp_path: Path) -> None:
    """What its operator is told to do where no copy of the log is left; the platform's trust file has the new key."""
    with Publishable(tmp_path / "first") as first:
        first.trust.write(platform.trust)
        platform.send(first.play().bundle(tmp_path / "a"))
    with _restored(tmp_path / "second", first, new_keys=True) as second:
        second.trust.write(platform.trust)
        assert platform.send(second.play().bundle(tmp_path / "b"))
