"""A synthetic cohort that fails its gate is withheld; the component is released all the same."""

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from strategies import release
from strategies.run_state import RunState
from vht_federate.errors import CohortError
from vht_federate.packaging.cohort import CohortRequest
from vht_federate.signing.keys import SigningKey


def _release(out: Path, lines: list[str]) -> "release.Release":
    request = SimpleNamespace(
        study_id="s", plan=SimpleNamespace(cohort=object()), codebook={},
        component=SimpleNamespace(digest="0" * 64, profile="p"),
    )  # fmt: skip
    planned = SimpleNamespace(request=request, permit=SimpleNamespace(permit_id="p"), component=object())
    run: Any = SimpleNamespace(
        planned=planned, out=out, clock=lambda: datetime.now(UTC), say=lines.append,
        directory=SimpleNamespace(recorded=lambda *_: {}),
    )  # fmt: skip
    visits: Any = None
    return release.Release(run, visits, SigningKey.generate())


def _makes(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    def fails(request: CohortRequest) -> None:
        request.out.mkdir()
        (request.out / "half-written").write_text("x")
        raise CohortError("it does not keep age", code=code)

    point = SimpleNamespace(load=lambda: fails)
    monkeypatch.setattr(release, "entry_points", lambda **_: [point])


def test_a_cohort_that_fails_its_gate_is_withheld_and_nothing_of_it_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    _makes(monkeypatch, "VHT-COHORT-QUALITY")
    state = RunState(study_id="s", state="completed", reason="4 of 4 nodes took part to the end")
    assert _release(tmp_path, lines)._cohort(state, {}) is None
    assert not (tmp_path / "cohort").exists()
    assert "withheld: it does not keep age" in state.reason
    assert any("withheld" in line for line in lines)


def test_any_other_failure_of_the_cohort_still_ends_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _makes(monkeypatch, "VHT-COHORT-NO-TABLES")
    with pytest.raises(CohortError):
        _release(tmp_path, [])._cohort(RunState(study_id="s", state="completed"), {})
