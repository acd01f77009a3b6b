"""The arithmetic of a privacy budget at one node: reserve, then draw, then release what was not drawn.

An ``Account`` is a frozen value; each operation returns a new one or raises BudgetError and changes nothing. Whoever
keeps it (a database row per entry) decides when it takes effect. Caps hold for what is spent *and* reserved, composed
jointly, for a patient of each population who was in everything (``accounts`` knows who was in what). What was drawn is
never given back: noise that was drawn is spent, whether or not its result left. Reports are by privacy loss
distributions; decisions after the first draw are by a filter (``filters``), since plans are chosen adaptively.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from vht_federate.domain.budget import POPULATIONS, PrivacyEvent, touching
from vht_federate.errors import BudgetError
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.privacy.filters import SLACK, RdpFilter

__all__ = ["Account", "Reservation"]


@dataclass(frozen=True)
class Reservation:
    """Events one visit may still draw, each once."""

    visit: str
    events: tuple[PrivacyEvent, ...]


@dataclass(frozen=True)
class Account:
    """The budget of one dataset: caps ``epsilon`` and ``delta``, what visits drew, and what they hold reserved."""

    epsilon: float
    delta: float
    spent: tuple[tuple[str, PrivacyEvent], ...] = ()  # (visit, event), in order
    reservations: tuple[Reservation, ...] = field(default=())

    def reserved(self, visit: str) -> tuple[PrivacyEvent, ...]:
        """What ``visit`` may still draw."""
        return tuple(
            event for reservation in self.reservations if reservation.visit == visit for event in reservation.events
        )

    def spent_by(self, visit: str | None = None) -> tuple[PrivacyEvent, ...]:
        """Events drawn by ``visit``, or by all."""
        return tuple(event for owner, event in self.spent if visit in (None, owner))

    def epsilon_spent(self, visit: str | None = None) -> dict[str, float]:
        """Epsilon by population of what ``visit`` (or everyone) drew."""
        return epsilon_by_population(self.spent_by(visit), self.delta)

    def epsilon_if_spent(self, more: Iterable[PrivacyEvent] = ()) -> dict[str, float]:
        """Epsilon by population once everything reserved, and ``more``, is drawn."""
        return epsilon_by_population((*self.spent_by(), *self._held(), *more), self.delta)

    def cost_if_spent(self, more: Iterable[PrivacyEvent] = ()) -> dict[str, float]:
        """The same as decisions count it (``RdpFilter.cost``): never below what a patient pays."""
        drawn, planned = self.spent_by(), [*self._held(), *more]
        rule = RdpFilter(self.epsilon, self.delta)
        return {
            population: rule.cost(touching(drawn, population), touching(planned, population))
            for population in POPULATIONS
        }

    def reserve(self, visit: str, events: Iterable[PrivacyEvent]) -> "Account":
        """Set ``events`` aside for ``visit``. Raises BudgetError VHT-BUDGET-CAP, VHT-BUDGET-RESERVED."""
        wanted = tuple(events)
        if any(reservation.visit == visit for reservation in self.reservations):
            raise BudgetError("this visit already holds a reservation", code="VHT-BUDGET-RESERVED")
        for population, cost in self.cost_if_spent(wanted).items():
            if cost > self.epsilon + SLACK:
                raise BudgetError(
                    f"the node's cap of epsilon {self.epsilon:g} at delta {self.delta:g} would be passed: {population} "
                    f"patients would have paid {cost:.3f}",
                    code="VHT-BUDGET-CAP",
                    hint="ask for less epsilon, or ask the node's operator to raise the dataset's cap",
                )
        return replace(self, reservations=(*self.reservations, Reservation(visit, wanted)))

    def draw(self, visit: str, events: Iterable[PrivacyEvent]) -> "Account":
        """Move ``events`` from reserved to spent. Raises BudgetError VHT-BUDGET-RESERVATION for one not reserved."""
        wanted = tuple(events)
        left = list(self.reserved(visit))
        if Counter(wanted) - Counter(left):
            raise BudgetError(
                "a visit may only draw what it holds reserved, each event once",
                code="VHT-BUDGET-RESERVATION",
                hint="this round was begun before, or the visit is closed",
            )
        for event in wanted:
            left.remove(event)
        others = tuple(reservation for reservation in self.reservations if reservation.visit != visit)
        return replace(
            self,
            spent=(*self.spent, *((visit, event) for event in wanted)),
            reservations=(*others, Reservation(visit, tuple(left))),
        )

    def release(self, visit: str) -> "Account":
        """Give back what ``visit`` did not draw. A visit without a reservation changes nothing."""
        return replace(
            self, reservations=tuple(reservation for reservation in self.reservations if reservation.visit != visit)
        )

    def _held(self) -> tuple[PrivacyEvent, ...]:
        return tuple(event for reservation in self.reservations for event in reservation.events)
