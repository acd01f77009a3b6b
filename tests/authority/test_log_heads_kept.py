"""The issuer keeps the newest head of each node's log, for whoever signs with the node's key."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from vht_federate.authority import store
from vht_federate.authority.app import build_app
from vht_federate.authority.store import Register
from vht_federate.domain.log_head import HEAD_TYP, HEADER, KEY_HEADER, QUERY_TYP
from vht_federate.signing.keys import SigningKey
from vht_federate.testing import FixedClock
from vht_federate.testing.asgi import AppClient

NODE, OTHER = SigningKey.generate(), SigningKey.generate()


def head(size: int, key: SigningKey = NODE) -> str:
    return key.sign({"node": "h1", "size": size, "root": "ab" * 32}, typ=HEAD_TYP)


QUERY = NODE.sign({"node": "h1"}, typ=QUERY_TYP)


@pytest.fixture
def web(tmp_path: Path) -> AppClient:
    issuer = SigningKey.generate()
    register = Register(tmp_path / "authority.sqlite")
    return AppClient(build_app(register, issuer, hdab="HDAB", status_validity_s=60.0, clock=FixedClock()))


def told(web: AppClient, token: str | None, key: SigningKey = NODE) -> str | None:
    headers = {HEADER: token, KEY_HEADER: key.public.jwk()["x"]} if token else {}
    answer = web.get("/status-list", headers=headers)
    assert answer.status_code == 200
    known: str | None = answer.headers.get(HEADER)
    return known


def test_what_was_kept_before_is_told_and_the_newest_is_kept(web: AppClient) -> None:
    assert told(web, QUERY) is None
    assert told(web, head(3)) is None
    assert told(web, head(7)) == head(3)
    assert told(web, head(5)) == head(7)
    assert told(web, QUERY) == head(7)


def test_nobody_else_is_told_or_heard(web: AppClient) -> None:
    told(web, head(3))
    for token in (None, head(9, OTHER), OTHER.sign({}, typ=QUERY_TYP), NODE.sign({"size": 9}, typ="JWT"), "x.y.z"):
        assert told(web, token) is None
    headers = {HEADER: head(9), KEY_HEADER: "AA"}
    assert HEADER.lower() not in web.get("/status-list", headers=headers).headers
    assert told(web, QUERY) == head(3)
    assert told(web, OTHER.sign({}, typ=QUERY_TYP), OTHER) is None


def test_a_flood_of_keys_pushes_nobody_out(web: AppClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST_LOGS", 3)
    told(web, head(3))
    for _ in range(4):
        stranger = SigningKey.generate()
        told(web, head(2**60, stranger), stranger)
    assert told(web, OTHER.sign({}, typ=QUERY_TYP), OTHER) is None
    assert told(web, head(4)) == head(3)
    assert told(web, QUERY) == head(4)


def test_heads_that_come_at_once_are_all_answered_and_the_newest_is_kept(web: AppClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda size: told(web, head(size)), range(1, 33)))
    assert told(web, QUERY) == head(32)


def test_the_status_list_goes_out_where_no_head_can_be_kept(web: AppClient, monkeypatch: pytest.MonkeyPatch) -> None:
    told(web, head(3))

    def full(*_: object) -> None:
        raise OperationalError("insert", {}, Exception("database or disk is full"))

    monkeypatch.setattr(Register, "keep_head", full)
    assert told(web, head(7)) == head(3)
