"""What an auditor of a node's whole ledger receives: events, caps and groups by size; no subject, no small cell."""

from datetime import datetime

from sqlalchemy.orm import Session

from connector.governance.ledger import Ledger
from connector.governance.ledger_rows import known_permits
from connector.settings import NodeSettings
from vht_federate.evidence.ledger_file import LEDGER_TYP, CapLine, GroupLine, LedgerFile, RunLine, group_cost
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.privacy.accounts import PatientAccounts
from vht_federate.privacy.filters import RdpFilter
from vht_federate.signing.keys import SigningKey

__all__ = ["export_ledger"]


def export_ledger(
    session: Session, ledger: Ledger, settings: NodeSettings, key: SigningKey, now: datetime
) -> LedgerFile:
    """The ledger as it stands, signed by the node."""
    accounts = ledger.patient_accounts(session)
    placed = accounts.participation.placed
    runs = tuple(
        RunLine(
            run=run.name,
            dataset=run.dataset,
            permit=run.permit,
            drew=run.drew,
            holds=run.holds,
            everybody=run.name not in placed,
        )
        for run in accounts.runs.values()
    )
    ledger_file = LedgerFile(
        node=settings.name,
        at=now,
        smallest_cell=settings.smallest_cell,
        caps=_caps(session, ledger, settings.dataset.id, {line.permit for line in runs}),
        runs=runs,
        groups=_groups(accounts, ledger, settings.smallest_cell),
        spent={scope: _spent(runs, scope, ledger.delta) for scope in _scopes(runs)},
    )
    return ledger_file.model_copy(update={"statement": key.sign(ledger_file.claims(), typ=LEDGER_TYP)})


def _caps(session: Session, ledger: Ledger, dataset: str, permits: set[str | None]) -> tuple[CapLine, ...]:
    lines = [CapLine(name="patient", of=None, epsilon=ledger.epsilon_cap, delta=ledger.delta)]
    if ledger.dataset_epsilon_cap is not None:
        lines.append(CapLine(name="dataset", of=dataset, epsilon=ledger.dataset_epsilon_cap, delta=ledger.delta))
    for permit_id, permit in known_permits(session).items():
        if permit_id not in permits:
            continue
        lines.append(CapLine(name="permit", of=permit_id, epsilon=permit.epsilon, delta=permit.delta))
    return tuple(lines)


def _groups(accounts: PatientAccounts, ledger: Ledger, smallest: int) -> tuple[GroupLine, ...]:
    participation, rule = accounts.participation, RdpFilter(ledger.epsilon_cap, ledger.delta)
    everywhere = {name: run for name, run in accounts.runs.items() if name not in participation.placed}
    lines = []
    for group, size in zip(participation.groups, participation.sizes().tolist(), strict=True):
        if size < smallest:
            continue
        known = tuple(run for run in group.runs if run in accounts.runs)
        cost = group_cost(rule, group.population, everywhere | {run: accounts.runs[run] for run in known})
        patients = max(smallest, round(size, -1))
        lines.append(GroupLine(population=group.population, runs=known, patients=patients, epsilon=cost))
    return tuple(lines)


def _scopes(runs: tuple[RunLine, ...]) -> list[str]:
    return sorted(
        {f"dataset {line.dataset}" for line in runs} | {f"permit {line.permit}" for line in runs if line.permit}
    )


def _spent(runs: tuple[RunLine, ...], scope: str, delta: float) -> dict[str, float]:
    kind, _, name = scope.partition(" ")
    return epsilon_by_population([event for line in runs if getattr(line, kind) == name for event in line.drew], delta)
