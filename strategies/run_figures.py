"""What a run amounts to in numbers: for its result, its package and whoever reads ``--json``."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from strategies.run_state import RunDirectory, RunState
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.figures import released_figures
from vht_federate.domain.plan import StudyPlan
from vht_federate.evidence.events import RoundBegun
from vht_federate.signing.canonical import canonical_bytes

__all__ = ["bytes_out", "events_of_log", "events_of_run", "figures_of"]


def events_of_log(export: Mapping[str, Any], visit: str) -> list[PrivacyEvent]:
    """What one visit truly drew, from its node's own log: every round that began, released or not."""
    return [
        PrivacyEvent.model_validate(event)
        for entry in export["entries"]
        if entry.get("kind") == RoundBegun.entry_kind and entry.get("visit") == visit
        for event in entry["body"]["events"]
    ]


def events_of_run(state: RunState, plan: StudyPlan, node: str) -> list[PrivacyEvent]:
    """The same by what the coordinator received: for a node whose log cannot be had."""
    calls = [call.rsplit("-", 1) for call in state.nodes[node].rounds]
    return [event for job, number in calls for event in plan.events_of(job, int(number))]


def bytes_out(directory: RunDirectory, state: RunState) -> dict[str, int]:
    """Bytes of results and tensors that left each node towards the coordinator."""
    total = dict.fromkeys(state.nodes, 0)
    for phase in state.rounds:
        for name, reply in directory.outputs(phase.job, phase.round).items():
            if name in phase.outputs:
                total[name] += len(canonical_bytes(reply.result)) + len(reply.tensors)
    return total


def figures_of(
    directory: RunDirectory, state: RunState, statement: Mapping[str, Any], cohort: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Numbers of a completed run. ``…_released`` are from noised tables on test patients.

    ``auc_released`` is of all nodes' tables added up, with ``auc_released_radius``: noise moved it by no more, with
    95 % confidence. ``accuracy_released``, at threshold 0.5, gives each node the same weight. ``…_interval`` is
    [low, high], with 95 % confidence over the noise; ``released`` has every figure of the pooled tables as people read
    it, by its title.
    """
    evaluation: Mapping[str, Any] = state.evaluation or {}
    intervals: Mapping[str, Any] = evaluation.get("intervals") or {}
    phases: Sequence[float] = [phase.seconds for phase in state.rounds]
    mean: Mapping[str, float] = evaluation.get("mean") or {}
    pooled: Mapping[str, float] = evaluation.get("pooled") or {}
    return {
        "nodes": len(state.taking_part()),
        "rounds": sum(1 for phase in state.rounds if phase.job == "train"),
        "phase_seconds_median": round(median(phases), 3) if phases else 0.0,
        "epsilon": statement["epsilon"],
        "epsilon_by_population": statement["epsilon_by_population"],
        "delta": statement["delta"],
        "unit": statement["unit"],
        "accountant": "pld",
        "patients_noised": round(sum(state.patients_noised.values())),
        "auc_released": pooled.get("auc"),
        "auc_released_radius": evaluation.get("pooled_auc_radius"),
        "auc_released_interval": (intervals.get("pooled") or {}).get("auc"),
        "accuracy_released": mean.get("accuracy"),
        "accuracy_released_interval": (intervals.get("mean") or {}).get("accuracy"),
        "released": {
            figure.title: figure.text for figure in released_figures(pooled, intervals.get("pooled")).values()
        },
        "evaluation": state.evaluation,
        "bytes_out_per_node": bytes_out(directory, state),
        "cohort": dict(cohort) if cohort else None,
    }
