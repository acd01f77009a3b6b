"""One running federation for all federation tests: four hospitals with canaries, every connection on record."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from federation.outgoing import Outgoing
from federation.wiretap import Wiretap

from deploy.commands import Commands
from deploy.local import Hospital, LocalFederation, StudyTerms
from deploy.terms import terms_for

HOSPITALS, PATIENTS, SEED = 4, 300, 11


@dataclass(frozen=True)
class Ran:
    """The shared federation after its study: still running, everything it did on disk and on record."""

    federation: LocalFederation
    wiretap: Wiretap
    outgoing: Outgoing
    permit_id: str
    run: dict[str, Any]
    canaries: frozenset[bytes]

    @property
    def bundle(self) -> Path:
        return self.federation.root / "run" / "bundle"


def small_terms(**changes: Any) -> StudyTerms:
    """The demo's study with fewer rounds."""
    terms = terms_for(uci=False)
    fields = {**terms.__dict__, "study_id": "shared-study", "training": {**terms.training, "rounds": 3}}
    return StudyTerms(**{**fields, **changes})


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A short path: Unix sockets do not like pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="vht-fed-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _hospitals_up(federation: LocalFederation) -> dict[str, int]:
    """The connectors that were started so far, by name."""
    names = {hospital.name for hospital in federation.hospitals}
    return {name: service.pid for name, service in list(federation.services.items()) if name in names}


@pytest.fixture(scope="session")
def ran(place: Path) -> Iterator[Ran]:
    root = place / "f"
    root.mkdir()
    planted = place / "canaries.txt"
    with Commands(root / "commands.sh") as commands:
        commands.run(
            "data", "generate", "--hospitals", str(HOSPITALS), "--patients", str(PATIENTS), "--seed", str(SEED),
            "--canaries", str(planted), "--out", str(root / "data"),
        )  # fmt: skip
        folders = sorted(path for path in (root / "data").iterdir() if (path / "Patient.ndjson").exists())
        federation = LocalFederation(
            root, [Hospital(folder.name, folder) for folder in folders], small_terms(), commands
        )
        commands.run("pki", "ca", "--out", str(root / "pki"))
        commands.run("pki", "cert", "--ca", str(root / "pki"), "--name", "proxy", "--out", str(root / "pki" / "proxy"))
        tls = root / "pki" / "proxy"
        wiretap = Wiretap(place / "captures", federation.ca, tls / "proxy.crt", tls / "proxy.key")
        federation.routes, wiretap.besides = wiretap, federation.ports.values()
        try:
            with Outgoing(lambda: _hospitals_up(federation)) as outgoing:
                federation.start()
                permit_id = federation.issue_permit()
                run = federation.run_study(federation.write_study(), root / "run")
            needles = frozenset(planted.read_bytes().split())
            yield Ran(federation, wiretap, outgoing, permit_id, run, needles)
        finally:
            commands.close()
            wiretap.close()
