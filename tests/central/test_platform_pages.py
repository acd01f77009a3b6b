"""Pages and API of the platform over one admitted publication."""

import io
import re
from pathlib import Path

import pytest
from kit.hostile_table import Answered
from kit.publishable_release import Platform

from vht_federate.central import app as app_module
from vht_federate.central.app import build_app
from vht_federate.central.archive import pack
from vht_federate.testing.asgi import AppClient
from vht_federate.web import templates

PAGES = Path(app_module.__file__).parent / "templates"


@pytest.fixture
def client(platform: Platform) -> AppClient:
    return AppClient(build_app(platform.catalogue, platform.admission, title="A catalogue", maximum_upload=1 << 24))


def send(client: AppClient, bundle: Path):  # type: ignore[no-untyped-def]
    archive = io.BytesIO()
    pack(bundle, archive)
    return client.post("/publications", files={"bundle": ("bundle.tar.gz", archive.getvalue(), "application/gzip")})


def test_an_empty_platform_says_that_it_is_empty(client: AppClient) -> None:
    home = client.get("/")
    assert home.status_code == 200
    assert "No component yet" in home.text
    assert "No synthetic cohort yet" in home.text
    assert "Nothing was published yet" in client.get("/evidence").text
    assert client.get("/api/components").json() == {"components": []}
    assert client.get("/health").json() == {"status": "ok", "service": "platform"}


def test_a_publication_is_admitted_once_and_listed(client: AppClient, bundle: Path) -> None:
    first, again = send(client, bundle), send(client, bundle)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert len(client.get("/api/publications").json()["publications"]) == 1
    component = client.get("/api/components").json()["components"][0]
    cohort = client.get("/api/cohorts").json()["cohorts"][0]
    assert (component["name"], cohort["rows"], cohort["nodes"]) == ("cardio-risk", 60, 3)
    assert component["id"] == first.json()["component"]
    assert client.get(f"/api/components/{component['id']}").json()["component"]["inputs"][0]["name"] == "age"
    assert client.get(f"/api/cohorts/{cohort['id']}").json()["codebook"]["target"] == "cvd_10y"


def test_every_page_renders_and_every_link_of_it_answers(client: AppClient, bundle: Path) -> None:
    pages = send(client, bundle).json()["pages"]
    waiting, seen = ["/", "/evidence", "/use", *pages.values()], set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.startswith("/"):
            continue
        seen.add(path)
        answer = client.get(path)
        assert answer.status_code == 200, path
        if answer.headers["content-type"].startswith("text/html"):
            assert "<h1>" in answer.text
            assert not re.search(r"\bNone\b|Undefined|> *nan *<", re.sub(r"<[^>]*>", "", answer.text)), path
            waiting += re.findall(r'href="(/[^"#]*)"', answer.text)
    assert len(seen) > 30


def test_a_figure_that_noise_could_move_by_half_is_shown_as_saying_nothing(client: AppClient, bundle: Path) -> None:
    """The rehearsed study's tables drown in their noise: its AUC is a number all the same."""
    pages = send(client, bundle).json()["pages"]
    listed = client.get("/api/components").json()["components"][0]["evaluation"]
    auc = listed["auc"]
    assert (auc["informative"], auc["high"] - auc["low"] > 0.5) == (False, True)
    assert {figure["title"] for figure in listed.values()} >= {"AUC", "sensitivity at threshold 0.5"}
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in listed.values())
    for path in (pages["component"], "/"):
        text = client.get(path).text
        assert "says nothing" in text
        assert f"<strong>{auc['value']:.3f}</strong>" not in text
        assert f"<dd>{auc['value']:.3f}" not in re.sub(r"<dd>\s+", "<dd>", text)
    card = client.get(pages["component"]).text
    assert "sensitivity at threshold 0.5" in card
    assert re.search(r"<td>AUC</td>\s*<td>says nothing</td>", card)


def test_a_table_that_noise_dominates_is_not_said_to_hold() -> None:
    parts = templates(PAGES, "A catalogue", []).get_template("parts.html").module
    good, dominated = {"columns": ["a", "b"], "holds": True}, {"columns": ["a", "b"], "holds": None}
    assert "noise dominates" in parts.holds(dominated, [])
    assert "noise dominates" in parts.holds(good, [["a", "b"]])  # as reports of earlier versions have it
    assert "holds" in parts.holds(good, [["a", "c"]])  # the control
    assert "fails" in parts.holds({**good, "holds": False}, [])


def test_pages_say_what_matters(client: AppClient, bundle: Path) -> None:
    pages = send(client, bundle).json()["pages"]
    component = client.get(pages["component"]).text
    assert "8480-6" in component
    assert "mm[Hg]" in component
    assert "Differential privacy with epsilon" in component
    assert "evidence verified" in component
    cohort = client.get(pages["cohort"]).text
    assert "Worst column" in cohort
    assert "No row is a patient" in cohort
    assert "<script>" not in cohort
    assert cohort.count('class="marginal"') == 12
    evidence = client.get(pages["evidence"]).text
    assert "issues permit permit-rehearsal-1" in evidence
    assert "nodes/hospital-1.json" in evidence


def test_files_are_served_as_downloads_and_only_those_of_the_bundle(client: AppClient, bundle: Path) -> None:
    identifier = send(client, bundle).json()["publication"]
    base = f"/api/publications/{identifier}"
    card = client.get(f"{base}/files/release/cardio-risk/model_card.md")
    assert card.text == (bundle / "release/cardio-risk/model_card.md").read_text()
    assert "attachment" in card.headers["content-disposition"]
    for path in ("../../platform.sqlite", "..%2f..%2fplatform.sqlite", "/etc/passwd", "release", "nothing"):
        assert client.get(f"{base}/files/{path}").status_code == 404, path
    assert client.get(f"{base}/bundle.tar.gz").content[:2] == b"\x1f\x8b"


def test_what_is_not_there_is_a_page_for_people_and_json_for_programs(client: AppClient) -> None:
    page = client.get("/components/none", headers={"accept": "text/html"})
    assert page.status_code == 404
    assert "Back to the catalogue" in page.text
    program = client.get("/api/components/none")
    assert program.status_code == 404
    assert program.json()["error"]["code"] == "VHT-INPUT-NOT-FOUND"


def test_a_request_that_is_too_large_or_no_archive_is_refused(client: AppClient) -> None:
    large = client.post("/publications", content=b"x", headers={"content-length": str(1 << 30)})
    assert large.json()["error"]["code"] == "VHT-PUBLICATION-SIZE"
    for options in ({"data": {"bundle": "text"}}, {"files": {"other": b"x"}}, {"content": b"x"}):
        answer = client.post("/publications", **options)  # type: ignore[arg-type]
        assert answer.status_code in (400, 422), options
        assert answer.json()["error"]["code"].startswith("VHT-")
    bad = client.post("/publications", files={"bundle": ("b.tar.gz", b"not an archive")})
    assert bad.json()["error"]["code"] == "VHT-PUBLICATION-ARCHIVE"


MALFORMED = [
    ("multipart/form-data; boundary=x", b"--y\r\nnothing of the kind"),
    ("multipart/form-data", b"--x\r\n"),
    (
        "multipart/form-data; boundary=x; charset=nonsense",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n',
    ),
    ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition\r\n\r\nb\r\n--x--\r\n"),
]


@pytest.mark.hostile("multipart")
@pytest.mark.parametrize(("content_type", "body"), MALFORMED)
def test_a_malformed_upload_is_a_typed_refusal(
    content_type: str, body: bytes, client: AppClient, answered: Answered
) -> None:
    answer = client.post("/publications", content=body, headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "VHT-INPUT-MULTIPART")
    answered("VHT-INPUT-MULTIPART")


@pytest.mark.hostile("multipart", control=True)
def test_control_starlettes_own_reading_of_a_form_fails_where_nobody_catches_it() -> None:
    from python_multipart.exceptions import FormParserError
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def read(request: Request) -> PlainTextResponse:
        await request.form()
        return PlainTextResponse("read")

    app = AppClient(Starlette(routes=[Route("/", read, methods=["POST"])]))
    for content_type, body in (MALFORMED[0], MALFORMED[3]):
        with pytest.raises(FormParserError):
            app.post("/", content=body, headers={"content-type": content_type})
