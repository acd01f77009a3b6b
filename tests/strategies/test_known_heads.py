"""What a coordinator keeps of hospitals' logs: the newest that the hospital's own key signed."""

from pathlib import Path

import pytest

from strategies.known_heads import LONGEST, KnownHeads
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


def receipt_and_head(folder: Path, length: int) -> tuple[str, str]:
    """Of one entry whose body has ``length`` characters: the same state of the log."""
    with EvidenceLog(folder, KEY, "h1", FixedClock()) as log:
        entry = log.append("node.started", {"version": "0" * length})
        head = log.head()
    assert head is not None
    return log.receipt(entry), head.token


@pytest.mark.parametrize("length", [2_000, 6_000])
def test_a_head_takes_the_place_of_a_receipt_of_the_same_log(length: int, tmp_path: Path) -> None:
    """A receipt of a closed visit lists every event; a header line is limited by whoever stands before the hospital."""
    heads = KnownHeads(tmp_path / "heads")
    receipt, head = receipt_and_head(tmp_path / "log", length)
    heads.note(JWK, receipt)
    assert heads.headers(JWK) == ({HEADER: receipt} if len(receipt) <= LONGEST else {})
    heads.note(JWK, head)
    heads.note(JWK, receipt)
    assert heads.headers(JWK) == {HEADER: head}


def test_a_long_receipt_that_an_earlier_version_kept_is_not_sent_and_gives_way_to_a_head(tmp_path: Path) -> None:
    heads = KnownHeads(tmp_path / "heads")
    receipt, head = receipt_and_head(tmp_path / "log", 6_000)
    assert len(receipt) > LONGEST
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / f"{KEY.public.kid}.jwt").write_text(f"{receipt}\n")
    assert heads.headers(JWK) == {}
    heads.note(JWK, head)
    assert heads.headers(JWK) == {HEADER: head}


@pytest.mark.parametrize("spoil", ["folder", "file"])
def test_what_cannot_be_kept_or_read_is_a_warning(
    spoil: str, tokens: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if spoil == "folder":
        (tmp_path / "heads").write_text("no folder")
    else:
        (tmp_path / "heads" / f"{KEY.public.kid}.jwt").mkdir(parents=True)
    heads = KnownHeads(tmp_path / "heads")
    heads.note(JWK, tokens[0])
    assert "cannot be kept" in caplog.text
    assert heads.headers(JWK) == {}


def test_what_the_hospitals_key_did_not_sign_is_not_kept(tokens: list[str], tmp_path: Path) -> None:
    heads = KnownHeads(tmp_path / "heads")
    claims = {"node": "h1", "size": 99, "root": "ab" * 32}
    statement = KEY.sign(claims, typ="vht-log-export+jwt")
    for token in (STRANGER.sign(claims, typ="vht-tree-head+jwt"), statement, "x", None, 7):
        heads.note(JWK, token)
    heads.note({"kty": "none"}, tokens[0])
    assert heads.headers(JWK) == heads.headers({"kty": "none"}) == {}
    assert not list(tmp_path.glob("heads/*"))
