"""What a coordinator keeps of hospitals' logs: the newest that the hospital's own key signed."""

from pathlib import Path

import pytest

from strategies.known_heads import KnownHeads
from vht_federate.domain.log_head import HEADER
from vht_federate.evidence.log import EvidenceLog
from vht_federate.signing.keys import SigningKey
from vht_federate.testing import FixedClock

KEY, STRANGER = SigningKey.generate(), SigningKey.generate()
JWK = KEY.public.jwk()


@pytest.fixture
def tokens(tmp_path: Path) -> list[str]:
    """Heads of sizes 1 and 3, and the receipt of an entry at size 2."""
    with EvidenceLog(tmp_path / "log", KEY, "h1", FixedClock()) as log:
        entries, heads = [], []
        for _ in range(3):
            entries.append(log.append("node.started", {"version": "0"}))
            head = log.head()
            assert head is not None
            heads.append(head.token)
        return [heads[0], log.receipt(entries[1]), heads[2]]


def test_the_newest_is_kept_whatever_comes_after_it(tokens: list[str], tmp_path: Path) -> None:
    heads = KnownHeads(tmp_path / "heads")
    assert heads.headers(JWK) == {}
    for shown, kept in ((0, 0), (1, 1), (0, 1), (2, 2), (1, 2), (0, 2)):
        heads.note(JWK, tokens[shown])
        assert KnownHeads(tmp_path / "heads").headers(JWK) == {HEADER: tokens[kept]}
    assert heads.headers(STRANGER.public.jwk()) == {}


def test_what_the_hospitals_key_did_not_sign_is_not_kept(tokens: list[str], tmp_path: Path) -> None:
    heads = KnownHeads(tmp_path / "heads")
    claims = {"node": "h1", "size": 99, "root": "ab" * 32}
    statement = KEY.sign(claims, typ="vht-log-export+jwt")
    for token in (STRANGER.sign(claims, typ="vht-tree-head+jwt"), statement, "x", None, 7):
        heads.note(JWK, token)
    heads.note({"kty": "none"}, tokens[0])
    assert heads.headers(JWK) == heads.headers({"kty": "none"}) == {}
    assert not list(tmp_path.glob("heads/*"))
