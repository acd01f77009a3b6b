"""How firmly were the enclaves closed off, in which patients' values were read? By each node's own log."""

from collections.abc import Iterable, Iterator

from vht_federate.domain.isolation import IsolationLevel
from vht_federate.domain.permit import Permit
from vht_federate.errors import PermitError
from vht_federate.evidence.finding import broken
from vht_federate.evidence.visit_record import VisitRecord
from vht_federate.permits.check import check_isolation

__all__ = ["weaker_enclaves"]


def weaker_enclaves(records: Iterable[VisitRecord], permit: Permit) -> Iterator[str]:
    """A sentence for each enclave that was less than a sandbox. What names no level counts as the weakest.

    Raises VerificationError VHT-VERIFY-ISOLATION for one below what the permit demands.
    """
    for record in records:
        if record.started is None:
            continue
        entry, started = record.started
        level = IsolationLevel.named(started.isolation)
        try:
            check_isolation(permit, level)
        except PermitError as error:
            raise broken(
                record.log.place(entry),
                f"closes an enclave off by {level} alone, and the permit demands {permit.enclave_isolation}",
                "ISOLATION",
            ) from error
        if not level.covers(IsolationLevel.SANDBOX):
            yield (
                f"{record.log.node}: the enclave of {record.visit} was no sandbox ({started.isolation or 'not said'}): "
                "the operating system did not keep the component's code from the hospital's other files"
            )
