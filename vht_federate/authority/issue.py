"""From a request file to a signed permit.

``permit.toml`` holds the fields of a permit without ids and times, plus ``days`` (how long it is good), and the data
users by name, kind and the file of their public key::

    application_ref = "application-7"
    days = 365
    dataset_ids = ["urn:vht:hospital-1:ehr"]
    …
    [[data_users]]
    name = "Cardiology Research Institute"
    kind = "academic"
    key = "user.pub.json"        # relative to this file
"""

import tomllib
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vht_federate.authority.store import Register
from vht_federate.domain.permit import PERMIT_TYP, Permit
from vht_federate.errors import InputError
from vht_federate.signing.keys import PublicKey, SigningKey

__all__ = ["issue_permit", "read_request"]


def read_request(path: Path, *, permit_id: str, now: datetime, hdab: str = "") -> Permit:
    """The permit that ``path`` asks for, issued ``now``. ``hdab`` counts where the file names none.

    Raises InputError VHT-INPUT-PERMIT naming the fields.
    """
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _bad(f"cannot read {path.name} as TOML") from error
    days = raw.pop("days", None)
    if isinstance(days, bool) or not isinstance(days, int | float) or not 0 < days < 10_000:
        raise _bad("'days' is a positive number")
    reserved = sorted({"permit_id", "issued_at", "expires_at"} & raw.keys())
    if reserved:
        raise _bad(f"the issuer sets {', '.join(reserved)}")
    start = raw.pop("not_before", now)
    if not isinstance(start, datetime) or start.tzinfo is None:
        raise _bad("'not_before' is a time with a time zone")
    if hdab:
        raw.setdefault("hdab", hdab)
    users = raw.get("data_users")
    raw["data_users"] = [_user(user, path.parent) for user in users] if isinstance(users, list) else users
    times = {"issued_at": now, "not_before": start, "expires_at": start + timedelta(days=days)}
    try:
        return Permit.model_validate({**raw, "permit_id": permit_id, **times})
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'permit'}: {item['msg']}" for item in error.errors())
        raise _bad(places) from error


def issue_permit(
    register: Register, key: SigningKey, path: Path, *, clock: Callable[[], datetime], new_id: str, hdab: str = ""
) -> tuple[Permit, str]:
    """Sign the permit of the request file ``path`` and enter it in the register. ``(permit, JWT)``."""
    permit = read_request(path, permit_id=new_id, now=clock(), hdab=hdab)
    token = key.sign(permit.claims(), typ=PERMIT_TYP)
    register.add(permit, token)
    return permit, token


def _user(user: Any, base: Path) -> Any:
    if not isinstance(user, dict) or not isinstance(user.get("key"), str):
        raise _bad("each of 'data_users' has name, kind and key (a file)")
    rest = {name: value for name, value in user.items() if name != "key"}
    return {**rest, "kid": PublicKey.read(base / user["key"]).kid}


def _bad(problem: str) -> InputError:
    return InputError(
        f"the permit request does not fit: {problem}",
        code="VHT-INPUT-PERMIT",
        hint="docs/reference/permit.md describes every field",
    )
