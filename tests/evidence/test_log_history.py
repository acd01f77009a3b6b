"""A hospital's log in two bundles: one that was restored in between holds in each, and not side by side."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from kit.commands import exit_and_envelope
from kit.rehearsed_runs import NAMES, NODE, PLAN, finish

from vht_federate.errors import VerificationError
from vht_federate.evidence.log import EvidenceLog
from vht_federate.evidence.log_history import require_same_history
from vht_federate.evidence.verify import verify_bundle
from vht_federate.testing.rehearsal import Rehearsal


def _played(root: Path, after: Rehearsal | None = None) -> Rehearsal:
    """A run; with the keys of the one that it comes ``after``, on logs that know nothing of that."""
    study = Rehearsal(root, names=NAMES, plan=PLAN)
    if after is not None:
        for log in study.logs.values():
            log.close()
        shutil.rmtree(root / "logs")
        study.issuer, study.user, study.coordinator = after.issuer, after.user, after.coordinator
        study.node_keys = after.node_keys
        study.logs = {
            name: EvidenceLog(root / "logs" / name, key, name, study._tick) for name, key in study.node_keys.items()
        }
        study.permit = study._permit()
        study.request = study._request()
    study.status("start")
    study.negotiate()
    study.round("train", 1, NAMES)
    return finish(study)


def _compared(folder: Path, trust: Path) -> tuple[int, dict[str, Any]]:
    return exit_and_envelope("audit", "compare", folder / "a", folder / "b", "--trust", trust)


def test_a_log_that_went_on_is_the_same_log(tmp_path: Path) -> None:
    with _played(tmp_path / "run") as study:
        before = verify_bundle(study.bundle(tmp_path / "a"), study.trust).logs[NODE]
        for log in study.logs.values():
            log.append("node.started", {"version": "0"})
        after = verify_bundle(study.bundle(tmp_path / "b"), study.trust).logs[NODE]
        study.trust.write(tmp_path / "trust.json")
    assert after.size == before.size + 1
    assert require_same_history(after, before, "a") == require_same_history(before, after, "b") == before.size
    code, envelope = _compared(tmp_path, tmp_path / "trust.json")
    assert (code, {row["node"] for row in envelope["data"]["same"]}) == (0, set(NAMES))


def test_a_log_that_was_restored_in_between_shows_beside_the_earlier_bundle(tmp_path: Path) -> None:
    first = _played(tmp_path / "first")
    second = _played(tmp_path / "second", after=first)
    with first, second:
        before = verify_bundle(first.bundle(tmp_path / "a"), first.trust).logs[NODE]  # each holds by itself
        after = verify_bundle(second.bundle(tmp_path / "b"), second.trust).logs[NODE]
        second.trust.write(tmp_path / "trust.json")
    for log, other in ((after, before), (before, after)):
        with pytest.raises(VerificationError, match="entry 0") as caught:
            require_same_history(log, other, "the other")
        assert caught.value.code == "VHT-VERIFY-LOG-FORKED"
    code, envelope = _compared(tmp_path, tmp_path / "trust.json")
    assert (code, envelope["error"]["code"]) == (4, "VHT-VERIFY-LOG-FORKED")
