"""The studies that the demo runs: one for each kind of data it can be given."""

from typing import Any

from deploy.local_federation import StudyTerms

__all__ = ["EXPORT", "GENERATED", "UCI", "export_terms", "terms_for"]

# Chosen by cross-validation on training patients only: benchmarks/{uci,hypertension}_selection.py print the tables.
GENERATED: dict[str, Any] = {
    "rounds": 5, "local_steps": 20, "sampling_rate": 0.5, "clipping_norm": 0.5, "learning_rate": 12.0, "momentum": 0.8,
}  # fmt: skip
UCI: dict[str, Any] = {
    "rounds": 5, "local_steps": 8, "sampling_rate": 0.7, "clipping_norm": 0.4, "learning_rate": 1.2, "momentum": 0.7,
}  # fmt: skip
EXPORT: dict[str, Any] = {
    "rounds": 5, "local_steps": 8, "sampling_rate": 0.7, "clipping_norm": 0.4, "learning_rate": 1.2, "momentum": 0.7,
}  # fmt: skip


def terms_for(uci: bool) -> StudyTerms:
    """The study of ``cardio-risk`` on real (UCI) or generated hospitals."""
    if uci:
        return StudyTerms(
            study_id="coronary-disease-uci",
            title="Coronary disease in patients referred for angiography",
            profile="angiography",
            epsilon=3.0,
            delta=1e-4,
            cohort_epsilon=1.0,
            evaluation_epsilon=2.5,
            training=UCI,
        )
    return StudyTerms(
        study_id="cardio-risk-demo",
        title="Ten-year cardiovascular risk across four hospitals",
        profile="cardiometabolic",
        epsilon=3.0,
        delta=1e-5,
        cohort_epsilon=1.2,
        evaluation_epsilon=2.5,
        training=GENERATED,
    )


def export_terms(hospitals: int) -> StudyTerms:
    """The study of ``hypertension-risk`` on an export of general care, split into ``hospitals``.

    A hospital whose cohort is below the permit's minimum takes no part; the study goes on while three remain.
    """
    return StudyTerms(
        study_id="hypertension-risk-export",
        title="Hypertension, from what was recorded before its diagnosis",
        component="hypertension-risk",
        profile="before-onset",
        epsilon=3.0,
        delta=1e-4,
        cohort_epsilon=1.0,
        evaluation_epsilon=2.5,
        minimum_nodes=min(3, hospitals),
        training=EXPORT,
    )
