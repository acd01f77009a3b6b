"""A federation that faults are done to: four small hospitals, three short studies."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation.conftest import small_terms

from deploy.commands import Commands
from deploy.local import Hospital, LocalFederation


@pytest.fixture(scope="module")
def federation() -> Iterator[LocalFederation]:
    place = Path(tempfile.mkdtemp(prefix="vht-flt-"))
    with Commands(place / "commands.sh") as commands:
        commands.run(
            "data", "generate", "--hospitals", "4", "--patients", "120", "--seed", "3", "--out", str(place / "data")
        )
        folders = sorted(path for path in (place / "data").iterdir() if (path / "Patient.ndjson").exists())
        terms = small_terms(round_deadline_s=25.0, epsilon_cap=20.0)
        made = LocalFederation(place, [Hospital(folder.name, folder) for folder in folders], terms, commands)
        made.start()
        yield made
    shutil.rmtree(place, ignore_errors=True)
