"""``DIR/summary.json`` of a demo, and the same as a table for people.

Two kinds of figures stand in it. Released ones left the hospitals under differential privacy. Exact ones are the
harness's, which reads the source files of all hospitals: ``not_private`` names them, ``about`` says what each is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local_federation import LocalFederation
from vht_federate.domain.figures import released_figures
from vht_federate.output import table
from vht_federate.text import counted

__all__ = ["ABOUT", "Outcome", "released", "shown", "summary_of"]

NOT_PRIVATE = ("patients", "auc_federated", "accuracy_mean_over_nodes", "harness")
EXACT = "exact, by the harness from the source files, not private: mean over the nodes' test sets of the "
ABOUT = {
    "seconds_total": "seconds from start to end, data and processes included",
    "nodes": "hospitals that took part to the end",
    "patients": "exact, by the harness, not private: patients with a record in the study, training and test",
    "patients_noised": "released with noise: training patients",
    "phase_seconds_median": "seconds of a phase from its first message to its last answer, median",
    "epsilon": "the most that one patient at any node pays for training, metrics and cohort, composed",
    "accountant": "pld: privacy loss distributions, all releases of a node composed jointly",
    "auc_federated": f"{EXACT}AUC of the released component",
    "accuracy_mean_over_nodes": f"{EXACT}accuracy at 0.5 of the released component",
    "auc_released": "released with noise: AUC from the score tables of all nodes added up",
    "auc_released_radius": "noise moved auc_released by no more, with 95 % confidence",
    "auc_released_interval": "where auc_released lies without noise, with 95 % confidence",
    "accuracy_released": "released with noise: mean over the nodes of accuracy at 0.5",
    "accuracy_released_interval": "where accuracy_released lies without noise, with 95 % confidence",
    "released": "released with noise: every figure of all nodes' tables added up, as it is shown, with its interval",
    "bytes_out_per_node": "bytes of results and tensors that left each node towards the coordinator",
    "cohort": "rows of the synthetic cohort and its own share of epsilon; null where it was withheld, see reason",
    "ledger": "by node: cap and spent as epsilon (spent: the most of any population), entries as releases drawn",
    "audit": "evidence verified offline with keys from outside the bundle; entries of all nodes' logs",
    "isolation": "how firmly this machine closes enclaves off: level, walls, and what it lacks of a sandbox",
    "harness": "exact figures from the source files, not private, never published; see about in it",
}


@dataclass(frozen=True)
class Outcome:
    """What the commands of a demo answered: the permit's id, ``study run``, ``audit verify`` and the harness."""

    permit: str
    run: Mapping[str, Any]
    verified: Mapping[str, Any]
    harness: dict[str, Any]


def summary_of(federation: LocalFederation, outcome: Outcome, report: Path, seconds: float) -> dict[str, Any]:
    """``summary.json``. A path or figure of a cohort that was withheld is None."""
    run, harness, verified = outcome.run, outcome.harness, outcome.verified
    return {
        "schema_version": "1",
        "about": ABOUT,
        "not_private": list(NOT_PRIVATE),
        "study_id": federation.terms.study_id,
        "component": federation.terms.component,
        "profile": federation.terms.profile,
        "permit_id": outcome.permit,
        "state": run["state"],
        "reason": run["reason"],
        "participants": run["participants"],
        "lost": run["lost"],
        "seconds_total": round(seconds, 1),
        "patients": harness["patients"],
        "epsilon_permitted": federation.terms.epsilon,
        **run["figures"],
        "auc_federated": harness["auc_federated"],
        "accuracy_mean_over_nodes": harness["accuracy_federated"],
        "ledger": {name: _ledger(budget) for name, budget in federation.ledgers().items()},
        "isolation": federation.isolation,
        "audit": {
            "verified": verified["verified"],
            "entries": verified["entries"],
            "entries_by_node": verified["entries_by_node"],
            "epsilon_by_node": verified["epsilon_by_node"],
            "sha256": verified["sha256"],
            "notes": verified["notes"],
        },
        "paths": {
            "package": run["paths"]["package"],
            "cohort": run["paths"].get("cohort"),
            "evidence": run["paths"]["bundle"],
            "trust": str(federation.trust),
            "report": str(report),
            "run": run["paths"]["run"],
            "platform": str(federation.root / "platform"),
        },
        "harness": harness,
        "pages": {name: url.split("?")[0] for name, url in federation.describe().items()},
    }


def _ledger(budget: Mapping[str, Any]) -> dict[str, Any]:
    """A demo's node has one dataset; ``spent`` is what its worst-off patient paid."""
    ((dataset, account),) = budget["datasets"].items()
    return {
        "dataset": dataset,
        "cap": account["cap"],
        "delta": account["delta"],
        "spent": max(account["spent"].values()),
        "spent_by_population": account["spent"],
        "reserved_by_population": account["reserved"],
        "entries": account["entries"],
    }


def shown(summary: Mapping[str, Any], hospitals: int) -> tuple[Any, ...]:
    """What a person sees at the end: figures, then where things lie."""
    places = [(name, path or "withheld") for name, path in summary["paths"].items()]
    return (
        table("What came out", ["what", "value"], _rows(summary, hospitals)),
        "\n".join(f"{name:<9} {path}" for name, path in places),
        f"Pages: vht platform serve {summary['paths']['platform']}, or the demo with --keep.",
        "All figures: summary.json. Every command that ran: commands.sh.",
    )


def _rows(summary: Mapping[str, Any], hospitals: int) -> Sequence[tuple[str, str]]:
    truth = summary["harness"]
    taking_part = f"{summary['nodes']} of {counted(hospitals, 'hospital')}"
    return [
        ("study", f"{summary['study_id']}: {summary['state']}, {taking_part}, {summary['seconds_total']:.0f} s in all"),
        *((f"  without {name}", why) for name, why in summary["lost"].items()),
        (
            "epsilon, one patient at one hospital",
            f"{summary['epsilon']:.3f} of {summary['epsilon_permitted']:g} at {summary['delta']:g}",
        ),
        ("AUC, as released with noise, all tables added up", released(summary, "auc")),
        ("accuracy at 0.5, as released with noise, mean over hospitals", released(summary, "accuracy")),
        ("synthetic cohort", _cohort_in_words(summary)),
        ("evidence", f"{summary['audit']['entries']} log entries verified offline"),
        ("enclaves", _isolation_in_words(summary["isolation"])),
        ("exact and not private, from here on", "means over the hospitals' test sets"),
        ("patients with a record, of them with the outcome", f"{truth['patients']}, {truth['patients_with_outcome']}"),
        ("  test patients alone", f"{truth['test_patients']}, {truth['test_patients_with_outcome']}"),
        ("AUC: this component", _figure(summary["auc_federated"])),
        ("  pooled data, without privacy", _figure(truth["auc_pooled_nonprivate"])),
        ("  each hospital alone, same plan", _figure(truth["auc_local_mean"])),
        (f"  {truth['single_input']} alone", _figure(truth["auc_single_input"])),
        ("  the number of missing inputs alone", _figure(truth["auc_missing_count"])),
        ("accuracy: this component", _figure(summary["accuracy_mean_over_nodes"])),
        ("  pooled data, without privacy", _figure(truth["accuracy_pooled_nonprivate"])),
        ("  each hospital alone, same plan", _figure(truth["accuracy_local_mean"])),
        ("  always what most patients of the hospital have", _figure(truth["accuracy_majority"])),
        ("AUC of a plain model trained on the synthetic cohort", _figure(truth["tstr_auc"])),
        ("  on the real training patients instead", _figure(truth["real_auc"])),
        ("distance of marginals, synthetic and real: mean", _figure(truth["tvd_mean"])),
        (f"  worst{_of(truth['tvd_worst_variable'])}", _figure(truth["tvd_worst"])),
    ]


def _of(name: str | None) -> str:
    return f", {name}" if name else ""


def _isolation_in_words(isolation: Mapping[str, Any]) -> str:
    missing = "; ".join(isolation["missing"])
    return f"{isolation['level']}: {missing}" if missing else str(isolation["level"])


def _cohort_in_words(summary: Mapping[str, Any]) -> str:
    cohort = summary["cohort"]
    if cohort is None:
        return "withheld: it did not keep what was released (see reason in summary.json)"
    return f"{cohort['rows']} rows, epsilon {cohort['epsilon']:.3f} of the total"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def released(summary: Mapping[str, Any], name: str) -> str:
    """The released figure ``name`` (auc, accuracy) with the interval that noise leaves it, or that it says nothing."""
    value, interval = summary[f"{name}_released"], summary[f"{name}_released_interval"]
    return "-" if value is None else released_figures({name: value}, {name: interval})[name].text
