"""What a test does in the middle of a run must have happened: a run that ended without it is no proof."""

from pathlib import Path
from typing import Any

import pytest

from deploy.demo.studies import terms_for
from deploy.local_federation import LocalFederation
from vht_federate.errors import CohortError, UnavailableError


class Runs:
    """Commands, of which the one that runs a study ends as told."""

    def __init__(self, ending: Exception | None) -> None:
        self._ending = ending

    def run(self, *_: str, **__: Any) -> dict[str, Any]:
        if self._ending:
            raise self._ending
        return {"state": "completed"}


def _federation(place: Path, ending: Exception | None) -> tuple[LocalFederation, Path]:
    study = place / "study.toml"
    study.write_text('[study]\nid = "a-study"\n')
    return LocalFederation(place, [], terms_for(uci=False), Runs(ending)), study  # type: ignore[arg-type]


def _fails() -> None:
    raise AssertionError("there was nobody to kill")


@pytest.mark.parametrize("ending", [None, CohortError("too few", code="VHT-COHORT-NODES")])
def test_what_kept_it_from_happening_is_raised_however_the_run_ended(tmp_path: Path, ending: Exception | None) -> None:
    federation, study = _federation(tmp_path, ending)
    with pytest.raises(AssertionError, match="nobody to kill"):
        federation.run_study(study, tmp_path / "run", approve=False, during=_fails)


def test_it_has_not_happened_where_no_operator_could_approve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation, study = _federation(tmp_path, None)

    def nobody_asked(*_: object, **__: object) -> list[str]:
        raise UnavailableError("no visit was requested")

    monkeypatch.setattr(federation, "approve_visits", nobody_asked)
    with pytest.raises(UnavailableError, match="no visit"):
        federation.run_study(study, tmp_path / "run", during=lambda: None)
    assert federation.run_study(study, tmp_path / "run") == {"state": "completed"}


def test_what_happened_leaves_the_run_s_own_end(tmp_path: Path) -> None:
    happened: list[str] = []
    federation, study = _federation(tmp_path, CohortError("too few", code="VHT-COHORT-NODES"))
    with pytest.raises(CohortError):
        federation.run_study(study, tmp_path / "run", approve=False, during=lambda: happened.append("killed"))
    assert happened == ["killed"]
