"""Hospitals for the connector's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from node_kit import Hospital, make_hospital, write_fhir


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    """A provisioned node without data, its issuer running."""
    made = make_hospital(tmp_path)
    yield made
    made.issuer.stop()


@pytest.fixture
def stocked(hospital: Hospital) -> Hospital:
    """The same with forty patients."""
    with hospital.open(start=False) as node:
        node.ingest(write_fhir(hospital.root / "fhir"))
    return hospital
