"""The outward listener: the catalogue, the node's identity, and visits, each behind its own token and its own key.

A study names its coordinator's key: whoever presents it, and whoever asks about its visit, proves with every request to
hold that key (RFC 9449). Whoever holds no token of a visit is told that there is no such visit. Nothing here approves
anything.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header
from fastapi.params import Depends as DependsParameter
from pydantic import BaseModel, ConfigDict, Field

from connector.catalogue import catalogue
from connector.http_guards import Guarded, Presented, plain_app, presented
from connector.node import Node
from connector.store.models import VisitRow
from vht_federate.domain.log_head import LARGEST
from vht_federate.domain.permit import Sha256
from vht_federate.serving import answer_typed_errors

__all__ = ["outward_app"]

_STRICT = ConfigDict(extra="forbid", frozen=True)
Holder = Annotated[Presented, Depends(presented)]


class VisitRequest(BaseModel):
    """A permit (JWT), a study request (JWS), and the public key that signed the latter."""

    model_config = _STRICT
    permit: str = Field(max_length=100_000)
    study: str = Field(max_length=2_000_000)
    user_key: dict[str, str]


class QuestionRequest(BaseModel):
    """A permit (JWT), a feasibility question (JWS), and the public key that signed the latter."""

    model_config = _STRICT
    permit: str = Field(max_length=100_000)
    question: str = Field(max_length=2_000_000)
    user_key: dict[str, str]


class ReleaseNotice(BaseModel):
    model_config = _STRICT
    kind: str = Field(pattern=r"^[a-z]{1,32}$")
    sha256: Sha256


class CloseRequest(BaseModel):
    model_config = _STRICT
    reason: str = Field(default="done", max_length=200)


def outward_app(node: Node) -> FastAPI:
    """The application behind ``node``'s outward listener."""
    app = answer_typed_errors(plain_app("Node"))

    def compare(vht_log_head: Annotated[str | None, Header(max_length=LARGEST)] = None) -> None:
        """Whoever asks may show the newest head or receipt of this node's log that they hold."""
        if vht_log_head:
            node.log_heads.compare(vht_log_head)

    shown = [Depends(compare)]

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "service": "node"}

    @app.get("/catalogue")
    def catalogue_of_node() -> dict[str, Any]:
        newest = node.overview.newest_ingest()
        return catalogue(node.settings, node.summary(), modified=newest)

    @app.get("/identity")
    def identity() -> dict[str, Any]:
        return node.identity

    @app.post("/feasibility", dependencies=shown)
    def feasibility(body: QuestionRequest) -> dict[str, Any]:
        answer = node.feasibility.answer(body.permit.strip(), body.question.strip(), body.user_key)
        return {"node": node.settings.name, "dataset": node.settings.dataset.id, **answer}

    _add_visits(app, node, shown)
    app.add_middleware(Guarded, service="outward")
    return app


def _add_visits(app: FastAPI, node: Node, shown: Sequence[DependsParameter]) -> None:
    @app.post("/visits", status_code=201, dependencies=shown)
    def request_visit(
        body: VisitRequest, holder: Holder, idempotency_key: Annotated[str | None, Header(max_length=200)] = None
    ) -> dict[str, Any]:
        permit, study = body.permit.strip(), body.study.strip()
        visit = node.visits.request(permit, study, body.user_key, idempotency_key, proof=holder.proof)
        return {
            "visit": visit.id,
            "state": visit.state,
            "token": node.visits.token(visit.id),
            "token_type": "DPoP",
            "node": node.settings.name,
            "dataset": visit.dataset_id,
        }

    @app.get("/visits/{visit_id}")
    def show_visit(visit_id: str, holder: Holder) -> dict[str, Any]:
        return _shown(node, node.visits.of_holder(visit_id, holder.token, holder.proof))

    @app.post("/visits/{visit_id}/releases", dependencies=shown)
    def acknowledge_release(visit_id: str, holder: Holder, notice: ReleaseNotice) -> dict[str, Any]:
        visit = node.visits.of_holder(visit_id, holder.token, holder.proof)
        return {"receipt": node.releases.acknowledge(visit, notice.kind, notice.sha256)}

    @app.post("/visits/{visit_id}/close", dependencies=shown)
    def close_visit(visit_id: str, holder: Holder, body: CloseRequest) -> dict[str, Any]:
        node.visits.of_holder(visit_id, holder.token, holder.proof)
        visit = node.visits.end(visit_id, "closed", code=None, reason=f"closed by the coordinator: {body.reason}")
        return {"state": visit.state, "code": visit.code, "receipt": visit.receipt}

    @app.get("/visits/{visit_id}/evidence", dependencies=shown)
    def evidence(visit_id: str, holder: Holder) -> dict[str, Any]:
        return node.evidence.export(node.visits.of_holder(visit_id, holder.token, holder.proof).permit_id)


def _shown(node: Node, visit: VisitRow) -> dict[str, Any]:
    return {
        "visit": visit.id,
        "state": visit.state,
        "reason": visit.reason,
        "code": visit.code,
        "node": node.settings.name,
    }
