"""Queries for tests of the ledger."""

from datetime import UTC, datetime

from connector.governance.ledger import Ledger
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.privacy.accounts import Run
from vht_federate.privacy.participation import Included

__all__ = ["LEDGER", "NOW", "gaussian", "people", "query"]


NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


LEDGER = Ledger(3.0, 1e-5)


def gaussian(noise: float = 1.6) -> PrivacyEvent:
    return PrivacyEvent(label="g", population="all", noise_multiplier=noise)


def people(*numbers: int) -> Included:
    return Included.of([f"{number:064x}"[::-1] for number in numbers], [number % 2 == 1 for number in numbers])


def query(name: str, *events: PrivacyEvent) -> Run:
    return Run(name, "d", None, holds=events or (gaussian(),))
