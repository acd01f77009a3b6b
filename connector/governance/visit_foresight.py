"""What a visit would find, looked up when an operator approves: whom it would include, and whether it could learn.

A cohort in which nobody has the outcome, or everybody, teaches nothing, and its budget would be spent all the same;
test patients of whom nobody has it, or everybody, measure nothing. Approving such a visit fails before anything is
reserved. That is for the operator's eyes alone: whether an outcome occurs here is a fact about patients. The visit
stays as it was, no log entry and no word to the coordinator says why, and the operator may approve all the same, so
that an approved visit says nothing of it either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from connector.views.cohort import Outcomes
from vht_federate.domain.plan import StudyPlan
from vht_federate.domain.split import is_test
from vht_federate.errors import RefusedError
from vht_federate.privacy.participation import Included

__all__ = ["OPERATORS_OWN", "Foresight"]

# Codes of what is between the node and its operator: no evidence, and nobody else, is told of them.
OPERATORS_OWN = frozenset({"VHT-REFUSED-OUTCOME", "VHT-REFUSED-EVALUATION", "VHT-INPUT-CODE-MAP"})


@dataclass(frozen=True)
class Foresight:
    """``outcomes``: of each patient included, whether any of their records has the outcome; None where unknown."""

    included: Included
    outcomes: Outcomes | None = None

    def require_informative(self, plan: StudyPlan, minimum_cohort: int) -> None:
        """Raises RefusedError VHT-REFUSED-OUTCOME or VHT-REFUSED-EVALUATION, for the operator alone.

        A cohort below the permit's minimum has an end of its own, and is passed over.
        """
        if self.outcomes is None or len(self.included) < minimum_cohort:
            return
        if len(set(self._of(test=False))) < 2:
            waste = "the visit would spend its budget and learn nothing"
            raise _uninformative("training", waste, "VHT-REFUSED-OUTCOME")
        if plan.evaluation is not None and len(set(self._of(test=True))) < 2:
            waste = "the evaluation here would spend its budget and say nothing"
            raise _uninformative("test", waste, "VHT-REFUSED-EVALUATION")

    def _of(self, *, test: bool) -> Sequence[bool]:
        return [truth for bucket, truth in self.outcomes or () if is_test(bucket) is test]


def _uninformative(whom: str, waste: str, code: str) -> RefusedError:
    return RefusedError(
        f"among the {whom} patients of this cohort nobody has the outcome, or everybody: {waste}",
        code=code,
        hint="is the outcome coded in a way that this node reads? see 'vht node codes check' and 'vht node quality'; "
        "then reject the visit, or approve it with --despite-outcome (on the console, the box on the visit's own page)",
    )
