"""The internal listener: the operator's API and pages. Every request needs the operator token or a console session.

The API takes the operator token as a bearer, with the operator's name where something is decided; the pages take a
session cookie, and every form carries the session's key.
"""

from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from connector.console.log_in_delays import LogInDelays
from connector.console.routes import add_pages
from connector.console.sessions import Sessions
from connector.fhir.deletions import Deletions
from connector.fhir_api.administration import add_fhir_api
from connector.governance.operator_accounts import INVITATION_MINUTES, Actor
from connector.http_guards import Guarded, plain_app
from connector.listeners.quality_api import add_quality
from connector.node import Node
from vht_federate.errors import RefusedError
from vht_federate.serving import answer_typed_errors
from vht_federate.web import install

__all__ = ["internal_app"]

_STRICT = ConfigDict(extra="forbid", frozen=True)


class Decision(BaseModel):
    """Who decides: the holder of the operator token says so; a session's name stands by itself."""

    model_config = _STRICT
    operator: str | None = Field(default=None, min_length=1, max_length=100)


class Approval(Decision):
    despite_outcome: bool = False  # though the visit could not learn, or its evaluation say anything


class Rejection(Decision):
    reason: str = Field(default="", max_length=500)


class IngestRequest(BaseModel):
    model_config = _STRICT
    folder: str
    dataset: str | None = None
    replace: bool = False
    source: str | None = Field(default=None, max_length=64)
    deletions: tuple[str, ...] = ()  # files that list what the source deleted,
    deleted_at: AwareDatetime | None = None  # until then

    def listed(self) -> Deletions | None:
        files = tuple(Path(name) for name in self.deletions)
        return Deletions(files, self.deleted_at) if files and self.deleted_at else None


class PullRequest(BaseModel):
    model_config = _STRICT
    whole: bool = False


class OptOutRequest(BaseModel):
    model_config = _STRICT
    patient_id: str = Field(min_length=1, max_length=2048)  # or a reference to the patient
    at: AwareDatetime | None = None
    ahead: bool = False  # recorded though the node holds no such patient yet


def internal_app(node: Node, *, delays: LogInDelays | None = None) -> FastAPI:
    """The application behind ``node``'s internal listener."""
    app = answer_typed_errors(plain_app("Node, internal"))
    sessions = Sessions(node.accounts, node.settings.name, delays)

    def actor(request: Request) -> Actor:
        signed_in = sessions.actor(request)
        if signed_in is None:
            raise RefusedError(
                "log in first", code="VHT-REFUSED-LOGIN", hint="at /login, or with the token in operator.token"
            )
        if request.method != "GET":  # forms have routes of their own, with the session's key
            sessions.require_token(request)
        return signed_in

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "service": "node"}

    who = Depends(actor)
    _add_log_in(app, node, who)
    _add_visits(app, node, who)
    _add_data(app, node, who)
    add_quality(app, node, who)
    add_fhir_api(app, node.fhir_api, node.accounts, who)
    add_pages(app, node, sessions)
    install(app)
    app.add_middleware(Guarded, service="internal", answering=("/fhir/",))  # in FHIR's words, and in its log
    return app


def _named(node: Node, actor: Actor, decision: Decision | None) -> Actor:
    """The actor under the name that was given, who must be allowed to decide."""
    name = decision.operator if decision else None
    return node.accounts.as_operator(actor, name).require_approver()


def _add_visits(app: FastAPI, node: Node, who: Any) -> None:
    Who = Annotated[Actor, who]  # noqa: N806 - a type

    @app.get("/api/status")
    def status(_: Who) -> dict[str, Any]:
        return node.status()

    @app.get("/api/visits")
    def visits(_: Who) -> dict[str, Any]:
        return {"visits": node.overview.visits()}

    @app.get("/api/visits/{visit_id}")
    def visit(visit_id: str, _: Who) -> dict[str, Any]:
        return node.visit(visit_id)

    @app.post("/api/visits/{visit_id}/approve")
    def approve(visit_id: str, actor: Who, decision: Approval | None = None) -> dict[str, Any]:
        despite = decision is not None and decision.despite_outcome
        decided = node.visits.approve(visit_id, _named(node, actor, decision), despite_outcome=despite)
        return {"visit": visit_id, "state": decided.state}

    @app.post("/api/visits/{visit_id}/reject")
    def reject(visit_id: str, actor: Who, decision: Rejection | None = None) -> dict[str, Any]:
        reason = decision.reason if decision else ""
        decided = node.visits.reject(visit_id, _named(node, actor, decision), reason)
        return {"visit": visit_id, "state": decided.state}

    @app.post("/api/visits/{visit_id}/stop")
    def stop(visit_id: str, actor: Who, decision: Rejection | None = None) -> dict[str, Any]:
        reason = decision.reason if decision else ""
        stopped = node.visits.stop(visit_id, _named(node, actor, decision), reason)
        return {"visit": visit_id, "state": stopped.state, "code": stopped.code}


def _add_log_in(app: FastAPI, node: Node, who: Any) -> None:
    @app.post("/api/log-in-links")
    def log_in_link(actor: Annotated[Actor, who], decision: Decision | None = None) -> dict[str, Any]:
        name = decision.operator if decision else None
        code = node.accounts.invite(node.accounts.as_operator(actor, name))
        return {"url": f"{node.settings.internal_url}/login?code={code}", "minutes": INVITATION_MINUTES}


def _add_data(app: FastAPI, node: Node, who: Any) -> None:
    Who = Annotated[Actor, who]  # noqa: N806 - a type

    @app.post("/api/ingest")
    def ingest(actor: Who, body: IngestRequest) -> dict[str, Any]:
        actor.require_approver()
        if body.dataset not in (None, node.settings.dataset.id):
            raise RefusedError(f"this node holds dataset {node.settings.dataset.id}", code="VHT-REFUSED-DATASET")
        folder, listed = Path(body.folder), body.listed()
        return node.ingest(folder, replace=body.replace, deletions=listed, source=body.source, actor=actor)

    @app.get("/api/ingests")
    def ingests(_: Who) -> dict[str, Any]:
        return {"ingests": node.overview.ingests()}

    @app.get("/api/sources")
    def sources(_: Who) -> dict[str, Any]:
        return {"sources": node.pulls.described()}

    @app.post("/api/sources/{name}/run")
    def run(name: str, actor: Who, body: PullRequest) -> dict[str, Any]:
        node.pulls.ask(name, actor.require_approver(), whole=body.whole)
        return {"source": name, "asked": True}

    @app.get("/api/feasibility")
    def feasibility(_: Who) -> dict[str, Any]:
        return {"answers": node.feasibility.answers()}

    @app.post("/api/opt-outs")
    def opt_out(actor: Who, body: OptOutRequest) -> dict[str, Any]:
        actor.require_approver()
        node.opt_out(body.patient_id, since=body.at, actor=actor, ahead=body.ahead)
        return {"recorded": True}

    @app.delete("/api/opt-outs")
    def withdraw(actor: Who, body: OptOutRequest) -> dict[str, Any]:
        actor.require_approver()
        return {"withdrawn": node.withdraw_opt_out(body.patient_id, at=body.at, actor=actor)}
