"""A proof of possession is for one key, one recipient, one request and one moment (RFC 9449 section 4.3)."""

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from vht_federate.errors import RefusedError
from vht_federate.signing.keys import SigningKey
from vht_federate.signing.possession import LIFETIME, PROOF_TYP, PresentedProof, prove

NOW = datetime(2030, 5, 1, tzinfo=UTC)
KEY, OTHER = SigningKey.generate(), SigningKey.generate()
URL, PATH, RECIPIENT = "https://h1.example/visits/v-1", "/visits/v-1", "urn:vht:h1:ehr"


def proof(**changes: Any) -> str:
    about: dict[str, Any] = {"key": KEY, "method": "GET", "url": URL, "recipient": RECIPIENT, "now": NOW, "token": "t"}
    about |= changes
    return prove(about.pop("key"), about.pop("method"), about.pop("url"), **about)


def check(token: str, *, at: datetime = NOW) -> str:
    return PresentedProof("GET", PATH, token).check(KEY.public, recipient=RECIPIENT, now=at, token="t")


def signed(header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A proof whose claims or header are written by hand; a claim of None is left out."""
    right = jwt.decode(proof(), options={"verify_signature": False})
    written = {name: value for name, value in {**right, **claims}.items() if value is not None}
    return KEY.sign(written, typ=PROOF_TYP, header={"jwk": KEY.public.jwk()} if header is None else header)


def test_a_proof_has_the_form_of_the_standard() -> None:
    header, claims = jwt.get_unverified_header(proof()), jwt.decode(proof(), options={"verify_signature": False})
    assert (header["typ"], header["alg"], header["jwk"]["crv"]) == ("dpop+jwt", "EdDSA", "Ed25519")
    assert "d" not in header["jwk"]
    assert claims["ath"] == base64.urlsafe_b64encode(hashlib.sha256(b"t").digest()).rstrip(b"=").decode()
    assert {"jti", "htm", "htu", "iat", "aud"} <= claims.keys()
    assert len({check(proof()) for _ in range(20)}) == 20, "each has an identifier of its own"
    assert jwt.decode(proof(url=f"{URL}?a=1#b"), options={"verify_signature": False})["htu"] == URL


@pytest.mark.parametrize("away", [timedelta(0), LIFETIME, -LIFETIME])
def test_the_right_proof_is_accepted_while_it_lives(away: timedelta) -> None:
    assert check(proof(), at=NOW + away)


def test_a_proxy_may_serve_the_recipient_under_another_host_and_a_prefix() -> None:
    assert check(proof(url=f"https://gateway.example/hospitals/h1{PATH}"))


WRONG = [
    ("", "without one"),
    ("not a proof", "not made with that key"),
    (proof(key=OTHER), "not made with that key"),
    (proof(recipient="urn:vht:h2:ehr"), "another recipient"),
    (proof(method="POST"), "another request"),
    (proof(url=f"{URL}/close"), "another request"),
    (proof(url="https://h1.example/visits/v-11"), "another request"),
    (proof(url="https://h1.example/visits"), "another request"),
    (proof(url="https://h1.example/x?y=/visits/v-1"), "another request"),
    (proof(url="https://h1.example/x#/visits/v-1"), "another request"),
    (proof(token=None), "another token"),
    (proof(token="u"), "another token"),
    (proof(now=NOW - LIFETIME - timedelta(seconds=1)), "not now"),
    (proof(now=NOW + LIFETIME + timedelta(seconds=1)), "not now"),
    (signed(jti=None), "no identifier"),
    (signed(jti=""), "no identifier"),
    (signed(jti="j" * 129), "no identifier"),
    (signed(jti=7), "not made with that key"),
    (signed(iat=None), "not now"),
    (signed(iat="1"), "not now"),
    (signed(aud=None), "another recipient"),
    (signed(aud=[RECIPIENT, "urn:vht:h2:ehr"]), "another recipient"),
    (signed(htm=None), "another request"),
    (signed(htu=7), "another request"),
    (signed(header={}), "not made with that key"),
    (signed(header={"jwk": OTHER.public.jwk()}), "another key in its header"),
    (KEY.sign(json.loads("{}"), typ="vht-study+jwt"), "not made with that key"),
    (jwt.encode({"htm": "GET"}, "", algorithm="none", headers={"typ": PROOF_TYP}), "not made with that key"),
]


@pytest.mark.parametrize(("wrong", "why"), WRONG, ids=[f"{number}-{why}" for number, (_, why) in enumerate(WRONG)])
def test_any_other_is_refused(wrong: str, why: str) -> None:
    with pytest.raises(RefusedError, match=why) as caught:
        check(wrong)
    assert caught.value.code == "VHT-REFUSED-PROOF"
