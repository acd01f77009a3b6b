"""The cohort maker: from nodes' noisy tables to a sealed synthetic cohort (entry point group ``vht.cohort_makers``).

All of it is post-processing of released tables, so it costs no privacy beyond theirs, and it repeats: the seed is the
digest of the tables, so an auditor who holds them can draw the same rows.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save

from synth.data_card import render_data_card
from synth.decode import decode
from synth.fhir import validate_sample, write_ndjson
from synth.marginal_sums import NoisyTable, read_reply, sum_tables, total_of
from synth.marginals import one_way_tables, two_way_tables
from synth.quality import gate, report
from synth.synthesizer import fit, sample
from synth.two_way_tables import Pair, all_pairs, read_pairs
from vht_federate.domain.plan import CohortPlan
from vht_federate.errors import CohortError
from vht_federate.packaging.codebook import Codebook
from vht_federate.packaging.cohort import CohortRequest, CohortResult, seal_cohort
from vht_federate.packaging.statement import Share, cohort_share, read_statement
from vht_federate.signing.signed_manifest import empty_folder, write_json

__all__ = ["make_cohort", "metadata_of"]

FHIR_SAMPLE = 50
_HEADLINES = ("column_mean", "pair_mean", "worst_column", "worst_pair")
MAXIMUM_ROWS = 1_000_000


def make_cohort(request: CohortRequest) -> CohortResult:
    """Fit, sample, judge, write and seal.

    Raises WireError for tables that do not fit the codebook, CohortError VHT-COHORT-QUALITY where the gate refuses.
    """
    book = Codebook.read(request.codebook)
    plan = request.plan.cohort
    if plan is None or not request.one_way or not request.two_way:
        raise CohortError("no node answered with marginals", code="VHT-COHORT-NO-TABLES")
    folder = empty_folder(request.out)
    share = cohort_share(request.plan)
    statement = {**request.statement, "release": share.model_dump(mode="json")}
    words = read_statement(statement)
    one_way, two_way, total = _tables(book, plan, request)
    rng = np.random.default_rng(_seed(request))
    rows = plan.rows or min(MAXIMUM_ROWS, max(1, round(total)))
    codes = sample(book, fit(book, [*one_way, *two_way], total), rows, rng)
    table = decode(book, codes, rng)
    metadata = metadata_of(book)
    quality = report(book, [*one_way, *two_way], codes, table, metadata)
    gate(quality)

    _write_table(request, table)
    lines = write_ndjson(folder / "fhir", request.component, request.profile, table)
    validated = validate_sample(folder / "fhir", FHIR_SAMPLE)
    write_json(folder / "codebook.json", request.codebook)
    write_json(folder / "sdv_metadata.json", metadata)
    write_json(folder / "sdmetrics_report.json", quality)
    write_json(folder / "privacy_statement.json", statement)
    sums = {noisy.table.name: noisy.counts for noisy in (*one_way, *two_way)}
    (folder / "marginals.safetensors").write_bytes(save(sums))
    card = render_data_card(request, book, rows=rows, lines=lines, quality=quality, statement=words)
    (folder / "data_card.md").write_text(card, encoding="utf-8")
    facts = _facts(request, rows, lines, validated, quality, share)
    sealed = seal_cohort(folder, facts, request.key)
    return CohortResult(folder, sealed.sha256, rows, share.epsilon, share.delta, quality)


def metadata_of(book: Codebook) -> dict[str, Any]:
    """SDV metadata of the table ``cohort``, validated by SDV itself."""
    from sdv.metadata import Metadata

    sdtypes = {"quantity": "numerical", "boolean": "boolean", "category": "categorical"}
    columns = {name: {"sdtype": sdtypes[book.columns[name].kind]} for name in book.order}
    metadata = Metadata.load_from_dict({"tables": {"cohort": {"columns": columns}}, "relationships": []})
    metadata.validate()
    content: dict[str, Any] = metadata.to_dict()
    return content


def _tables(
    book: Codebook, plan: CohortPlan, request: CohortRequest
) -> tuple[list[NoisyTable], list[NoisyTable], float]:
    """One-way and two-way sums and the noised number of patients; two-way sums of fewer nodes are scaled to it."""
    one_way = sum_tables(one_way_tables(book), request.one_way, plan.one_way_noise_multiplier)
    pairs = _pairs_in(book, request.two_way)
    two_way = sum_tables(two_way_tables(book, pairs), request.two_way, plan.two_way_noise_multiplier)
    total = total_of(one_way)
    scale = total / total_of(two_way) if set(request.two_way) != set(request.one_way) else 1.0
    return one_way, [NoisyTable(noisy.table, noisy.counts * scale, noisy.stddev * scale) for noisy in two_way], total


def _pairs_in(book: Codebook, replies: Mapping[str, bytes]) -> Sequence[Pair]:
    """The pairs that the first node was asked for; the others must have the same tables."""
    first = sorted(replies)[0]
    names = set(read_reply(first, replies[first]))
    return read_pairs(book, [pair for pair in all_pairs(book) if f"pair/{pair[0]}|{pair[1]}" in names])


def _seed(request: CohortRequest) -> int:
    state = hashlib.sha256(b"vht-cohort-1")
    for replies in (request.one_way, request.two_way):
        for node in sorted(replies):
            state.update(hashlib.sha256(replies[node]).digest())
    return int.from_bytes(state.digest()[:8], "big")


def _write_table(request: CohortRequest, table: pd.DataFrame) -> None:
    table.to_csv(request.out / "data.csv", index=False, lineterminator="\n")
    table.to_parquet(request.out / "data.parquet", index=False)


def _facts(
    request: CohortRequest, rows: int, lines: dict[str, int], validated: int, quality: dict[str, Any], share: Share
) -> dict[str, Any]:
    digests = {
        number: {node: hashlib.sha256(reply).hexdigest() for node, reply in sorted(replies.items())}
        for number, replies in (("1", request.one_way), ("2", request.two_way))
    }
    return {
        "study_id": request.study_id,
        "permit_id": request.permit_id,
        "created_at": request.created_at.isoformat(),
        "synthetic": True,
        "method": "federated noisy marginals, graphical model by mirror descent, tree with the target in every clique",
        "component": {
            "name": request.component.name,
            "version": request.component.version,
            "profile": request.profile,
            "digest": request.component_digest,
        },
        "license": request.license,
        "rows": rows,
        "columns": list(request.codebook["order"]),
        "fhir": {"lines": lines, "validated": validated},
        "nodes": len(request.one_way),
        "tables_sha256": digests,
        "epsilon": request.statement["epsilon"],
        "cohort_epsilon": share.epsilon,
        "delta": share.delta,
        "quality": {name: quality[name] for name in _HEADLINES} | {"noise_dominated": len(quality["noise_dominated"])},
    }
