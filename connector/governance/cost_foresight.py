"""What the rounds of running visits cost, computed before it is asked for."""

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.plan import StudyPlan
from vht_federate.privacy.accounting import epsilon_by_population

__all__ = ["CostForesight"]


class CostForesight:
    """Accounts for the rounds of plans ahead of time, so that few answers wait for the accountant (it remembers).

    It helps, and nothing waits for it: one round of each plan after the other, in a thread of its own, until the plan's
    visit ends. The thread has the priority of the others, since what it holds while it computes is what they wait for.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vht-foresee")
        self._visits: set[str] = set()

    def expect(self, visit_id: str) -> None:
        """A visit that may be ready in a moment."""
        self._visits.add(visit_id)

    def leave(self, visit_id: str) -> None:
        """Its visit is over: the round in progress is its last."""
        self._visits.discard(visit_id)

    def price(self, visit_id: str, plan: StudyPlan) -> None:
        """Account for ``plan``'s rounds as long as its visit is expected. Returns at once."""
        self._submit(visit_id, plan, plan.calls(), ())

    def close(self) -> None:
        """Returns at once; the round in progress is the last of all."""
        self._visits.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(
        self, visit_id: str, plan: StudyPlan, calls: Sequence[tuple[str, int]], spent: tuple[PrivacyEvent, ...]
    ) -> None:
        def run() -> None:
            if visit_id not in self._visits:
                return
            job, round_ = calls[0]
            spent_then = (*spent, *plan.events_of(job, round_))
            epsilon_by_population(spent_then, plan.delta)
            self._submit(visit_id, plan, calls[1:], spent_then)

        if calls:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                self._pool.submit(run)
