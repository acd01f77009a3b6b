"""Who may use the local FHIR API: programs that the operator registered, each under one permit."""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from connector.governance.logged_transactions import Steps
from connector.governance.operator_accounts import Actor
from connector.governance.smart_scopes import read_scope
from connector.governance.study_admission import StudyAdmission
from connector.store.database import Database
from connector.store.models import FhirClientRow
from vht_federate.domain.law import DataCategory
from vht_federate.domain.permit import Permit
from vht_federate.errors import InputError, NotFoundError
from vht_federate.evidence.events import FhirClientRegistered, FhirClientRevoked
from vht_federate.signing.keys import unverified_claims

__all__ = ["Clients"]

_ADDRESS = re.compile(r"https://[^\s#@]{1,1990}")


@dataclass(frozen=True)
class Clients:
    """The registered clients of one node. Registration and revocation are in the evidence log before they hold."""

    database: Database
    steps: Steps
    admission: StudyAdmission
    categories: tuple[DataCategory, ...]  # of the node's dataset
    clock: Callable[[], datetime]

    def add(
        self, name: str, permit: str, scope: str, actor: Actor, *, jwks: dict[str, Any] | None, jku: str | None
    ) -> dict[str, Any]:
        """Register a client under ``permit`` (JWT), which must be good now.

        Raises InputError VHT-INPUT-CLIENT, -SCOPE, PermitError or RevokedError.
        """
        if (jwks is None) == (jku is None):
            raise InputError("a client has either a key set or the address of one", code="VHT-INPUT-CLIENT")
        if jku is not None and not _ADDRESS.fullmatch(jku):
            raise InputError("the address of a key set is an https URL", code="VHT-INPUT-CLIENT")
        if not read_scope(scope):
            raise InputError("a client has a scope", code="VHT-INPUT-SCOPE", hint="for everything: system/*.rs")
        valid_permit = self.admission.require_permit(permit, self.categories)
        row = FhirClientRow(
            id=secrets.token_hex(16),
            name=name,
            jwks=jwks,
            jku=jku,
            scope=" ".join(scope.split()),
            permit_id=valid_permit.permit_id,
            permit=permit,
            registered_at=self.clock(),
            registered_by=actor.name,
        )
        with self.steps.step() as step:
            step.session.add(row)
            step.session.flush()
            registered = FhirClientRegistered(client=row.id, name=name, scope=row.scope, **actor.facts())
            step.record(registered, permit_id=valid_permit.permit_id)
        return _as_dict(row)

    def revoke(self, client_id: str, actor: Actor) -> dict[str, Any]:
        """From now on the client gets no token, and none of its tokens opens anything. Raises NotFoundError."""
        with self.steps.step() as step:
            row = step.session.get(FhirClientRow, client_id)
            if row is None:
                raise NotFoundError("no such client", hint="vht node client list")
            if row.revoked_at is None:
                row.revoked_at = self.clock()
                step.session.flush()
                step.record(FhirClientRevoked(client=row.id, **actor.facts()), permit_id=row.permit_id)
        return _as_dict(row)

    def all(self) -> list[dict[str, Any]]:
        """Newest first."""
        with self.database.read() as session:
            rows = session.scalars(select(FhirClientRow).order_by(FhirClientRow.registered_at.desc(), FhirClientRow.id))
            return [_as_dict(row) for row in rows]

    def get(self, client_id: str) -> FhirClientRow | None:
        """The client of that id that was not revoked."""
        row = self.known(client_id)
        return row if row is not None and row.revoked_at is None else None

    def known(self, client_id: str) -> FhirClientRow | None:
        """The client of that id, revoked or not: whom a refusal is about, never who may read."""
        with self.database.read() as session:
            return session.get(FhirClientRow, client_id)

    def permit_of(self, row: FhirClientRow) -> Permit:
        """The client's permit, good at this moment. Raises PermitError or RevokedError."""
        return self.admission.require_permit(row.permit, self.categories)


def _as_dict(row: FhirClientRow) -> dict[str, Any]:
    permit = Permit.from_claims(unverified_claims(row.permit))
    return {
        "client": row.id,
        "name": row.name,
        "scope": row.scope,
        "keys": sorted(key["kid"] for key in row.jwks["keys"]) if row.jwks else None,
        "jku": row.jku,
        "permit_id": row.permit_id,
        "permit_expires_at": permit.expires_at.isoformat(),
        "columns": list(permit.columns),
        "registered_at": row.registered_at.isoformat(),
        "registered_by": row.registered_by,
        "used_at": row.used_at.isoformat() if row.used_at else None,
        "revoked_at": row.revoked_at.isoformat() if row.revoked_at else None,
    }
