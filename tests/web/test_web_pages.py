"""The shared page base: escaping, headers, missing names."""

import re
from pathlib import Path

import jinja2
import pytest
from fastapi import FastAPI, Request
from kit.places import ROOT
from starlette.responses import HTMLResponse, Response

from vht_federate.testing.asgi import AppClient
from vht_federate.web import CONTENT_SECURITY_POLICY, install, templates


def site(folder: Path, body: str) -> AppClient:
    (folder / "page.html").write_text('{% extends "base.html" %}{% block content %}' + body + "{% endblock %}")
    pages = templates(folder, "A <site>", [("/", "Home"), ("/other", "Other")])
    app = FastAPI()
    install(app)

    @app.get("/", response_class=HTMLResponse)
    def home(request: Request) -> Response:
        return pages.TemplateResponse(request, "page.html", {"value": "<script>alert(1)</script>"})

    return AppClient(app)


def test_values_are_escaped_and_the_base_has_skip_link_and_current_page(tmp_path: Path) -> None:
    text = site(tmp_path, "{{ value }}").get("/").text
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "A &lt;site&gt;" in text
    assert 'class="skip"' in text
    assert '<a href="/" aria-current="page">Home</a>' in text
    assert '<a href="/other">Other</a>' in text


def test_every_answer_carries_the_security_headers_and_pages_are_not_cached(tmp_path: Path) -> None:
    client = site(tmp_path, "x")
    for path in ("/", "/static/style.css", "/nowhere"):
        assert client.get(path).headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "script-src" not in CONTENT_SECURITY_POLICY
    assert client.get("/").headers["cache-control"] == "no-store"
    style = client.get("/static/style.css")
    assert style.headers["content-type"].startswith("text/css")
    assert "http" not in style.text  # no external font or image


def test_head_is_answered_as_get_without_the_content(tmp_path: Path) -> None:
    client = site(tmp_path, "x")
    for path in ("/", "/static/style.css"):
        answer, whole = client.request("HEAD", path), client.get(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers == whole.headers
        assert whole.content
    assert client.request("HEAD", "/nowhere").status_code == 404
    assert client.post("/").status_code == 405


def test_what_scrolls_sideways_can_be_reached_by_keyboard() -> None:
    """axe's rule scrollable-region-focusable (WCAG 2.1.1), in every template of the product."""
    boxes = [
        tag
        for folder in ("vht_federate", "connector", "deploy")
        for template in (ROOT / folder).rglob("templates/*.html")
        for tag in re.findall(r"<(?:div class=\"scroll\"|pre)[^>]*>", template.read_text())
    ]
    assert len(boxes) > 30
    assert [tag for tag in boxes if 'tabindex="0"' not in tag] == []
    assert [tag for tag in boxes if "scroll" in tag and "aria-label=" not in tag] == []


def test_a_number_agrees_with_its_noun(tmp_path: Path) -> None:
    text = site(tmp_path, "{% for n in (0, 1, 2, 1000) %}{{ n|counted('hospital') }}, {% endfor %}").get("/").text
    assert "0 hospitals, 1 hospital, 2 hospitals, 1,000 hospitals" in text
    templates_ = [path for folder in ("vht_federate", "connector") for path in (ROOT / folder).rglob("*.html")]
    assert [path.name for path in templates_ if re.search(r"\}\} hospitals", path.read_text())] == []


def test_a_name_that_the_page_lacks_is_an_error_and_not_an_empty_string(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError):
        site(tmp_path, "{{ forgotten }}").get("/")


def test_filters_speak_to_people(tmp_path: Path) -> None:
    body = "{{ 12345|number }} {{ 0.12345|number }} {{ none|number }} {{ ('a' * 64)|short }} {{ 1234567|size }} "
    text = site(tmp_path, body + "{{ '2030-01-02T03:04:05+01:00'|moment }}").get("/").text
    assert "12,345 0.123 – aaaaaaaaaaaa… 1.2 MB 2030-01-02 02:04:05 UTC" in text
