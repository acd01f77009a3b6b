"""The data card of a synthetic cohort, as Markdown."""

from typing import Any

from vht_federate.packaging.card import markdown_table
from vht_federate.packaging.codebook import Codebook
from vht_federate.packaging.cohort import CohortRequest
from vht_federate.packaging.statement import PrivacyStatement, plain_words

__all__ = ["render_data_card"]

_LIMITS = (
    "No row is a patient. Do not report results on this table as results on patients.",
    "Use it to write and test code, to teach, and to judge whether a study on the real data is worth a permit.",
    "Relations between two inputs are kept for the released pairs and for what follows from them through the outcome.",
    "Interactions of three or more variables are not kept.",
    "Within a bin, values are uniform. Tails beyond the public bounds are cut to them.",
    "One row for each patient, at its last landmark: there is no course over time.",
    "Small groups are blurred by the noise that protects their members; rare combinations may be absent or invented.",
)


def render_data_card(
    request: CohortRequest,
    book: Codebook,
    *,
    rows: int,
    lines: dict[str, int],
    quality: dict[str, Any],
    statement: PrivacyStatement,
) -> str:
    """What the table is, how it was made, how good it is, what it costs, and what it must not be used for."""
    about = (
        f"**Synthetic data.** {rows:,} rows, {len(book.order)} columns, drawn from differentially private tables of "
        f"{len(request.one_way)} hospitals by study `{request.study_id}` under permit `{request.permit_id}` on "
        f"{request.created_at:%Y-%m-%d}. Licence: {request.license}."
    )
    sections = [
        f"# Synthetic cohort: {request.component.profile(request.profile).title}",
        about,
        "## Columns\n\n" + _columns(request, book),
        "## How it was made\n\n" + _making(book),
        "## Quality\n\n" + _quality(quality),
        "## Privacy\n\n" + "\n".join(f"- {line}" for line in plain_words(statement)),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _LIMITS),
        "## Files\n\n" + _files(lines),
    ]
    return "\n\n".join(sections) + "\n"


def _columns(request: CohortRequest, book: Codebook) -> str:
    rows = []
    for name in book.order:
        column, port = book.columns[name], request.component.port(name)
        cells = f"{column.values} bins" if column.kind == "quantity" else ", ".join(column.levels)
        rows.append(
            (f"`{name}`", port.title, column.kind, column.unit, port.loinc, cells, "yes" if column.missing else "no")
        )
    return markdown_table(("column", "meaning", "kind", "unit", "LOINC", "cells", "can be missing"), rows)


def _making(book: Codebook) -> str:
    return (
        "Each hospital counted its patients (one row each) in tables over public bins, added Gaussian noise to every "
        "cell and released only the noisy tables: each column alone, coarse tables of all pairs, then fine tables of "
        f"a tree over the inputs and of each input with the outcome `{book.target}`. A graphical model was fitted to "
        "the sums (mirror descent) and sampled. The bins are in `codebook.json`, the sums in "
        "`marginals.safetensors`."
    )


def _quality(quality: dict[str, Any]) -> str:
    note = (
        f"SDMetrics ({quality['software']}) against {quality['reference']}. Their noise bounds what any table can "
        "score; `expected` is that bound. A mean hides failure, so the worst column and the worst pair decide."
    )
    rows = [
        (
            *(label, " × ".join(row["columns"]), row["metric"]),
            *(("noise dominates", None) if row["holds"] is None else (row["score"], row["expected"])),
        )
        for label, row in (("worst column", quality["worst_column"]), ("worst pair", quality["worst_pair"]))
    ]
    means = f"Mean over columns {quality['column_mean']}, over released pairs {quality['pair_mean']}."
    weak = len(quality["noise_dominated"])
    if weak:
        means += f" **{weak} released tables are dominated by their noise**: do not rely on those relations."
    return f"{note}\n\n{markdown_table(('', 'columns', 'metric', 'score', 'expected'), rows)}\n\n{means}"


def _files(lines: dict[str, int]) -> str:
    files = [("`data.csv`, `data.parquet`", "the table; an empty cell is a missing value")]
    files += [
        (f"`fhir/{kind}.ndjson`", f"{count:,} FHIR R4 resources, marked as test data") for kind, count in lines.items()
    ]
    files += [
        ("`codebook.json`, `marginals.safetensors`", "public bins; the noisy sums the rows were drawn from"),
        ("`sdv_metadata.json`, `sdmetrics_report.json`", "for SDV users; all scores"),
        ("`privacy_statement.json`, `manifest.json`, `manifest.jws`", "the guarantee; every file's sha256, signed"),
    ]
    return markdown_table(("file", "content"), files)
