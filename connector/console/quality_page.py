"""The console's page on the quality of the data: what a study with an installed component would find here."""

from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from connector.console.page_frame import Pages
from connector.node import Node
from connector.quality.survey_figures import CountDisclosure
from vht_federate.errors import CohortError

__all__ = ["add_quality_page"]

SHAREABLE = "shareable"


def add_quality_page(app: FastAPI, pages: Pages) -> None:
    node = pages.node

    @app.get("/quality", include_in_schema=False)
    @pages.page
    def quality(request: Request, study: str = "", numbers: str = "exact") -> Response:
        profiles = node.surveys.profiles()
        component, _, profile = (study or f"{profiles[0]['component']}/{profiles[0]['profile']}").partition("/")
        shareable = numbers == SHAREABLE
        shown = CountDisclosure(node.settings.smallest_cell if shareable else 0)
        newest = next(iter(node.overview.ingests()), {})
        return pages.render(
            request,
            "quality.html",
            profiles=profiles,
            shareable=shareable,
            smallest_cell=node.settings.smallest_cell,
            survey=_survey(node, component, profile, shown),
            sample=None if shareable else newest.get("sample"),
        )

    @app.get("/questions", include_in_schema=False)
    @pages.page
    def questions(request: Request) -> Response:
        answers, settings = node.feasibility.answers(), node.settings
        return pages.render(request, "questions.html", answers=answers, most=settings.feasibility_epsilon)


def _survey(node: Node, component: str, profile: str, shown: CountDisclosure) -> dict[str, Any] | None:
    try:
        return node.surveys.of(component, profile).to_dict(shown)
    except CohortError:
        return None  # before the first intake
