"""Who decides at a node: local accounts (scrypt, RFC 7914), roles, console sessions, and the token of the machine.

An approver may approve, reject, stop, ingest and record opt-outs; a viewer may look. The operator token, a file that
only the node's own system user can read, acts as an approver; whoever runs a command on the directory of a node that
rests acts under the name of their system account. Both may name an account instead, and then have its role; a name
without an account decides nothing.
"""

import getpass
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import delete

from connector.store.database import Database
from connector.store.models import OperatorRow, SessionRow
from vht_federate.errors import InputError, RefusedError

__all__ = ["Accounts", "Actor", "Role", "SignedIn", "system_user"]

Role = Literal["viewer", "approver"]
SESSION_HOURS = 8
MINIMUM_PASSWORD = 10
INVITATION_MINUTES = 15
INVITATIONS = 100
UNNAMED = "operator"
_SCRYPT = {"n": 2**15, "r": 8, "p": 1, "maxmem": 2**26, "dklen": 64}


@dataclass(frozen=True)
class Actor:
    """A person who acts; ``via`` says how the node knows: "account", "operator-token" or "system-user"."""

    name: str
    role: Role
    via: str

    def facts(self) -> dict[str, str]:
        """How the evidence log names the actor."""
        return {"operator": self.name, "via": self.via}

    def require_approver(self) -> "Actor":
        """Raises RefusedError VHT-REFUSED-ROLE."""
        if self.role != "approver":
            raise RefusedError(
                f"{self.name} may look but not decide", code="VHT-REFUSED-ROLE", hint="ask an approver of this node"
            )
        return self


@dataclass(frozen=True)
class SignedIn:
    """A console session: its actor, and the key that must come back with every form."""

    actor: Actor
    form_key: str


class Accounts:
    """Accounts and sessions of one node."""

    def __init__(self, database: Database, operator_token: str, clock: Callable[[], datetime]) -> None:
        self._database, self._token, self._clock = database, operator_token, clock
        self._invitations: dict[str, tuple[Actor, datetime]] = {}

    def add(self, name: str, role: Role | None, password: str) -> Role:
        """Add an account, or give an existing one a new password and role; its sessions end. The role it now has.

        Without a ``role`` an existing account keeps its own, and a new one may look.
        """
        if not name.strip() or len(name) > 100:
            raise InputError("an operator has a name of 1 to 100 characters", code="VHT-INPUT-OPERATOR")
        if len(password) < MINIMUM_PASSWORD:
            raise InputError(f"a password has at least {MINIMUM_PASSWORD} characters", code="VHT-INPUT-PASSWORD")
        salt = secrets.token_bytes(16)
        verifier = _scrypt(password, salt)
        with self._database.write() as session:
            known = session.get(OperatorRow, name)
            kept = role or (_role(known.role) if known else "viewer")
            session.merge(OperatorRow(name=name, role=kept, salt=salt, verifier=verifier, created_at=self._clock()))
            session.execute(delete(SessionRow).where(SessionRow.actor == name))
        return kept

    def log_in(self, name: str, password: str) -> tuple[str, SignedIn]:
        """The cookie's value and the session. Raises RefusedError VHT-REFUSED-LOGIN, the same for every reason."""
        with self._database.read() as session:
            row = session.get(OperatorRow, name)
        salt, verifier = (row.salt, row.verifier) if row else (b"\0" * 16, b"\0" * 64)
        right = hmac.compare_digest(_scrypt(password, salt), verifier)
        if row is None or not right:
            raise RefusedError("this name and password do not match an account", code="VHT-REFUSED-LOGIN")
        return self._open(Actor(row.name, _role(row.role), "account"))

    def invite(self, actor: Actor) -> str:
        """A code that opens one session for ``actor``, once, within ``INVITATION_MINUTES`` and this process's life."""
        now = self._clock()
        live = {digest: (who, until) for digest, (who, until) in self._invitations.items() if until > now}
        while len(live) >= INVITATIONS:
            live.pop(next(iter(live)))
        code = secrets.token_urlsafe(32)
        live[_digest(code)] = (actor, now + timedelta(minutes=INVITATION_MINUTES))
        self._invitations = live
        return code

    def log_in_with_code(self, code: str) -> tuple[str, SignedIn]:
        """The session that an invitation opens. Raises RefusedError VHT-REFUSED-LOGIN, also for a code used before."""
        actor, until = self._invitations.pop(_digest(code), (None, None))
        if actor is None or until is None or until <= self._clock():
            raise RefusedError(
                "this link was used before, or is too old", code="VHT-REFUSED-LOGIN", hint="vht node console NODE"
            )
        return self._open(actor)

    def of_token(self, token: str) -> Actor:
        """The actor behind the operator token: an approver without an account's name."""
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            raise RefusedError("this is not the operator token of this node", code="VHT-REFUSED-LOGIN")
        return Actor(UNNAMED, "approver", "operator-token")

    def as_operator(self, actor: Actor, name: str | None) -> Actor:
        """``actor`` under ``name``: who holds the token or the directory names an account, a session only its own.

        Raises RefusedError VHT-REFUSED-ROLE, and VHT-REFUSED-OPERATOR-UNKNOWN for a name without an account.
        """
        if name is None:
            return actor
        if actor.via == "account":
            if name == actor.name:
                return actor
            raise RefusedError("a session acts under its own name only", code="VHT-REFUSED-ROLE")
        with self._database.read() as session:
            row = session.get(OperatorRow, name)
        if row is None:
            raise RefusedError(
                "no operator of this node has that name",
                code="VHT-REFUSED-OPERATOR-UNKNOWN",
                hint="an account is made with 'vht node operator STATE NAME --role approver'",
            )
        return Actor(name, _role(row.role), actor.via)

    def of_cookie(self, value: str) -> SignedIn | None:
        """The live session behind a cookie, or None."""
        with self._database.read() as session:
            row = session.get(SessionRow, _digest(value))
        if row is None or row.expires_at <= self._clock():
            return None
        return SignedIn(Actor(row.actor, _role(row.role), row.via), row.form_key)

    def log_out(self, value: str) -> None:
        with self._database.write() as session:
            session.execute(delete(SessionRow).where(SessionRow.digest == _digest(value)))

    def _open(self, actor: Actor) -> tuple[str, SignedIn]:
        value, form_key = secrets.token_urlsafe(32), secrets.token_urlsafe(24)
        now = self._clock()
        with self._database.write() as session:
            session.execute(delete(SessionRow).where(SessionRow.expires_at <= now))
            session.add(
                SessionRow(
                    digest=_digest(value),
                    actor=actor.name,
                    via=actor.via,
                    role=actor.role,
                    form_key=form_key,
                    expires_at=now + timedelta(hours=SESSION_HOURS),
                )
            )
        return value, SignedIn(actor, form_key)


def system_user() -> Actor:
    """Who runs this process."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have them
        name = f"uid {os.getuid()}"
    return Actor(name, "approver", "system-user")


def _scrypt(password: str, salt: bytes) -> bytes:
    arguments: dict[str, Any] = {"salt": salt, **_SCRYPT}
    return hashlib.scrypt(password.encode(), **arguments)


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def _role(value: str) -> Role:
    return "approver" if value == "approver" else "viewer"
