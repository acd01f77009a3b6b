"""``DIR/report.html`` of a demo: the figures of ``summary.json`` for people, in one file that fetches nothing."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from deploy.demo.plots import budgets, curve, marginal
from deploy.demo.summary import released
from vht_federate.web.pages import stylesheet, templates

__all__ = ["report_html"]


def report_html(summary: Mapping[str, Any], *, made_at: datetime) -> str:
    """The page of one demo's summary. A figure that is None shows as a dash."""
    pages = templates(Path(__file__).parent / "templates", site="Demo", nav=())
    truth = summary["harness"]
    return pages.get_template("report.html").render(
        summary=summary,
        released={name: released(summary, name) for name in ("auc", "accuracy")},
        truth=truth,
        made_at=made_at,
        curves={metric: _curve(truth, metric) for metric in ("auc", "accuracy")},
        budget=budgets(
            "Epsilon spent of the cap, by node",
            {name: (account["spent"], account["cap"]) for name, account in summary["ledger"].items()},
        ),
        marginals={
            name: marginal(f"{name}: real and synthetic shares", histogram)
            for name, histogram in (truth["marginals"] or {}).items()
        },
        style=Markup(bytes(stylesheet().body).decode()),  # noqa: S704 - our own file
    )


def _curve(truth: Mapping[str, Any], metric: str) -> Markup:
    learned = truth["learning_curve"]
    levels = {"pooled": truth[f"{metric}_pooled_nonprivate"], "alone": truth[f"{metric}_local_mean"]}
    if metric == "accuracy":
        levels["majority"] = truth["accuracy_majority"]
    return curve(f"{metric} of the component after each round", learned["round"], learned[metric], levels)
