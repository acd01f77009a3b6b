"""``/api/quality`` on the internal listener: surveys for the operator, exact, or as they may be passed on."""

from typing import Annotated, Any

from fastapi import FastAPI

from connector.governance.operator_accounts import Actor
from connector.node import Node
from connector.quality.survey_figures import CountDisclosure

__all__ = ["add_quality", "quality"]


def quality(node: Node, component: str | None, profile: str | None, *, shareable: bool) -> dict[str, Any]:
    """The surveys that were asked for. ``shareable``: rounded, and nothing below the node's smallest cell."""
    shown = CountDisclosure(node.settings.smallest_cell if shareable else 0)
    return {
        "node": node.settings.name,
        "dataset": node.settings.dataset.id,
        "shareable": shareable,
        "surveys": [survey.to_dict(shown) for survey in node.surveys.all_of(component, profile)],
    }


def add_quality(app: FastAPI, node: Node, who: Any) -> None:
    Who = Annotated[Actor, who]  # noqa: N806 - a type

    @app.get("/api/quality")
    def surveys(
        _: Who, component: str | None = None, profile: str | None = None, shareable: bool = False
    ) -> dict[str, Any]:
        return quality(node, component, profile, shareable=shareable)
