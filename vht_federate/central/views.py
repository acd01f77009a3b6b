"""What each page and API answer shows, read from the catalogue and the verified files of a publication."""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from vht_federate.central.store import Catalogue, Publication, Release
from vht_federate.domain.figures import figures_of_manifest
from vht_federate.errors import InputError
from vht_federate.packaging.codebook import Codebook, Column
from vht_federate.packaging.statement import PrivacyStatement, plain_words
from vht_federate.signing.strict_json import read_json

__all__ = ["Bar", "ColumnView", "Views"]

PREVIEW_ROWS = 8


@dataclass(frozen=True)
class Bar:
    """One cell of a column's distribution; ``share`` of all rows in percent."""

    label: str
    share: float


@dataclass(frozen=True)
class ColumnView:
    """One column of a cohort as its page shows it."""

    name: str
    title: str
    column: Column
    loinc: str | None
    bars: tuple[Bar, ...]

    @property
    def tallest(self) -> float:
        return max((bar.share for bar in self.bars), default=0.0) or 1.0


class Views:
    """Read-only views over one catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable("table")

    def files(self, publication: Publication, folder: str = "") -> list[dict[str, Any]]:
        """Files of a bundle (below ``folder``): path, bytes, sha256, and where to get them."""
        root = self._catalogue.folder(publication.id) / "bundle"
        listed = read_json((root / "manifest.json").read_bytes())["files"]
        prefix = f"{folder}/" if folder else ""
        return [
            {"path": path, **entry, "href": f"/api/publications/{publication.id}/files/{path}"}
            for path, entry in sorted(listed.items())
            if path.startswith(prefix)
        ]

    def file(self, publication: Publication, path: str) -> Path:
        """A file of the bundle that its manifest lists, or the manifest itself. Raises InputError."""
        listed = {file["path"] for file in self.files(publication)} | {"manifest.json", "manifest.jws"}
        if path not in listed:
            raise InputError("this publication has no such file", code="VHT-INPUT-NOT-FOUND")
        return self._catalogue.folder(publication.id) / "bundle" / path

    def archive(self, publication: Publication) -> Path:
        return self._catalogue.folder(publication.id) / "bundle.tar.gz"

    def release(self, release: Release) -> dict[str, Any]:
        """A release as the API and lists show it."""
        facts = release.facts
        listed = {
            "id": release.id,
            "kind": release.kind,
            "name": facts["component"]["name"],
            "version": facts["component"]["version"],
            "profile": facts["component"]["profile"],
            "sha256": release.sha256,
            "publication": release.publication,
            "study_id": release.study_id,
            "permit_id": release.permit_id,
            "published_at": release.published_at,
            "license": facts["license"],
            "nodes": facts["nodes"],
            "epsilon": facts["epsilon"],
            "delta": facts["delta"],
            "page": f"/{release.kind}s/{release.id}",
        }
        more = ("title", "description", "profile_title", "rows", "columns", "cohort_epsilon", "quality")
        listed |= {name: facts[name] for name in more if name in facts}
        if "evaluation" in facts:
            figures = figures_of_manifest(facts)
            listed["evaluation"] = {name: figure.to_dict() for name, figure in figures.items()} or None
        return listed

    def component(self, release: Release) -> dict[str, Any]:
        """The component's page: ports, card, privacy, files."""
        folder = self._folder(release)
        return {
            **self._common(release, folder),
            "component": read_json((folder / "component.json").read_bytes()),
            "card": self._html(folder / "model_card.md"),
        }

    def cohort(self, release: Release) -> dict[str, Any]:
        """The cohort's page: columns with distributions, quality, privacy, preview, files."""
        folder = self._folder(release)
        book = Codebook.read(read_json((folder / "codebook.json").read_bytes()))
        header, rows = _table(folder / "data.csv")
        return {
            **self._common(release, folder),
            "book": book,
            "columns": self._columns(release, book, rows),
            "quality": read_json((folder / "sdmetrics_report.json").read_bytes()),
            "header": header,
            "preview": rows[:PREVIEW_ROWS],
            "card": self._html(folder / "data_card.md"),
        }

    def _common(self, release: Release, folder: Path) -> dict[str, Any]:
        publication = self._catalogue.publication(release.publication)
        raw = read_json((folder / "privacy_statement.json").read_bytes())
        statement = PrivacyStatement.model_validate(raw)
        return {
            "release": self.release(release),
            "publication": publication,
            "statement": statement,
            "words": plain_words(statement),
            "own_words": list(statement.coordinator_says.model_dump().values()) if statement.coordinator_says else [],
            "files": self.files(publication, release.folder),
            "folder": release.folder,
        }

    def _columns(self, release: Release, book: Codebook, rows: list[list[str]]) -> list[ColumnView]:
        titles = self._titles(release)
        views = []
        for index, name in enumerate(book.order):
            title, loinc = titles.get(name, (name.replace("_", " "), None))
            bars = _bars(book.columns[name], [row[index] for row in rows])
            views.append(ColumnView(name, title, book.columns[name], loinc, bars))
        return views

    def _titles(self, release: Release) -> dict[str, tuple[str, str | None]]:
        """Titles and LOINC codes of the ports, from the component that was published with the cohort."""
        root = self._catalogue.folder(release.publication) / "bundle" / "release"
        titles: dict[str, tuple[str, str | None]] = {}
        for path in root.glob("*/component.json"):
            component = read_json(path.read_bytes())
            for port in (*component["inputs"], component["predicts"]):
                titles[port["name"]] = (port["title"], port.get("loinc"))
        return titles

    def _folder(self, release: Release) -> Path:
        return self._catalogue.folder(release.publication) / "bundle" / release.folder

    def _html(self, path: Path) -> str:
        """Markdown as HTML; raw HTML in it is shown as text. Its title is dropped: the page has one."""
        text = path.read_text(encoding="utf-8")
        first, _, rest = text.partition("\n")
        html: str = self._markdown.render(rest if first.startswith("# ") else text)
        return html


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        return next(reader), list(reader)


def _bars(column: Column, cells: list[str]) -> tuple[Bar, ...]:
    """Shares of the codebook's cells among a column's CSV cells."""
    counted: Counter[int] = Counter()
    for cell, count in Counter(cells).items():
        counted[_cell(column, cell)] += count
    total = max(1, len(cells))
    return tuple(Bar(label, 100.0 * counted[index] / total) for index, label in enumerate(column.labels))


def _cell(column: Column, cell: str) -> int:
    if cell == "":
        return column.values
    if column.kind != "quantity":
        return column.levels.index(cell.lower() if column.kind == "boolean" else cell)
    above = sum(float(cell) >= edge for edge in column.edges)
    return min(max(above - 1, 0), column.values - 1)
