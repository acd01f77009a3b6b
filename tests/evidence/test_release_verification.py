"""What a release needs: its rounds, its nodes, its permit's leave."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kit.rehearsed_runs import NAMES, NODE, code_of, finish, prepared, rehearsal

from vht_federate.errors import VerificationError
from vht_federate.evidence.verify import verify_bundle
from vht_federate.testing.rehearsal import Rehearsal


def test_a_release_acknowledged_before_its_last_round_is_refused(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        study.release()
        study.round("train", 2, NAMES)
        study.close()
        study.status("end")
        assert code_of(study, tmp_path / "bundle", "before the rounds that it is made of") == "VHT-VERIFY-RELEASE"


def test_a_completed_run_below_the_permits_minimum_of_nodes_is_refused(tmp_path: Path) -> None:
    with rehearsal(tmp_path) as study:
        study.play(lost={"hospital-2": ("train", 2)})
        assert code_of(study, tmp_path / "bundle", "the permit asks for 2") == "VHT-VERIFY-RUN"


def test_a_release_that_a_node_did_not_acknowledge_is_refused(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        study.round("train", 2, NAMES)
        logged = study.log
        study.log = lambda *args: None if args[:2] == (NODE, "release.acknowledged") else logged(*args)  # type: ignore
        with pytest.raises(AttributeError):  # no entry, no receipt
            study.release()
        study.log = logged  # type: ignore[method-assign]
        study.close()
        study.status("end")
        words = "does not acknowledge the release of release/cardio-risk"
        assert code_of(study, tmp_path / "bundle", words) == "VHT-VERIFY-RELEASE"


def again(rehearsal: Rehearsal, built: dict[str, Any]) -> None:
    """The visit once more, under another id that the run names, with other facts about its cohort."""
    log = rehearsal.logs[NODE]
    for entry in [entry for entry in log.entries() if entry.visit == f"visit-{NODE}"]:
        body = {**entry.body, **(built if entry.kind == "cohort.built" else {})}
        log.append(entry.kind, body, permit_id=entry.permit_id, visit="visit-again")
    rehearsal.run["nodes"][NODE]["visit"] = "visit-again"
    rehearsal.status("end")


def test_opt_outs_of_another_day_are_named(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        late = (study.permit.issued_at + timedelta(days=1)).isoformat()
        again(study, {"opt_outs_as_of": late})
        assert code_of(study, tmp_path / "bundle", "Article 71") == "VHT-VERIFY-RUN"


def test_columns_beyond_the_study_are_named(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        again(study, {"columns": ["age", "genome"]})
        assert code_of(study, tmp_path / "bundle", "genome") == "VHT-VERIFY-RUN"


def test_a_node_that_does_not_close_its_visit_is_named(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        study.round("train", 2, NAMES)
        study.release()
        study.close(["hospital-2"])
        study.status("end")
        assert code_of(study, tmp_path / "bundle", f"nodes/{NODE}.json: does not close") == "VHT-VERIFY-RUN"


def test_an_unknown_node_is_refused_even_with_a_perfect_log(tmp_path: Path) -> None:
    with prepared(tmp_path) as study:
        finish(study)
        nodes = {name: jwk for name, jwk in study.trust.nodes.items() if name != NODE}
        trust = study.trust.model_copy(update={"nodes": nodes})
        with pytest.raises(VerificationError, match=f"nodes/{NODE}.json"):
            verify_bundle(study.bundle(tmp_path / "bundle"), trust)
