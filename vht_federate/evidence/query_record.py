"""Spends outside of visits, as a node's log tells them, and the answers that they paid for."""

from pydantic import ValidationError

from vht_federate.evidence.events import FeasibilityAnswered, QueryDrawn
from vht_federate.evidence.finding import broken
from vht_federate.evidence.node_log import NodeLog

__all__ = ["queries_drawn"]

QUERY, ANSWER = QueryDrawn.entry_kind, FeasibilityAnswered.entry_kind


def queries_drawn(log: NodeLog) -> tuple[QueryDrawn, ...]:
    """Every spend under the permit outside of visits. Raises VerificationError naming an entry that is none, and an
    answer that was not paid for."""
    queries: dict[str, QueryDrawn] = {}
    answered: set[str] = set()
    for entry in log.entries:
        if entry.kind == ANSWER:
            query_id = str(entry.body.get("query"))
            if entry.visit is not None or query_id not in queries or query_id in answered:
                raise broken(log.place(entry), f"{ANSWER} follows no {QUERY} of its own", "ORDER")
            answered.add(query_id)
        if entry.kind != QUERY:
            continue
        try:
            query = QueryDrawn.read(entry.body)
        except ValidationError as error:
            raise broken(log.place(entry), f"{QUERY} is not one", "ORDER") from error
        if entry.visit is not None or query.query in queries:
            raise broken(log.place(entry), f"{QUERY} belongs to a visit, or stands twice", "ORDER")
        queries[query.query] = query
    return tuple(queries.values())
