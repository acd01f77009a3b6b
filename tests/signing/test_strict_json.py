"""JSON that two readers could take for two things is refused wherever something is signed or named by its digest."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.hostile_table import Answered

from vht_federate.errors import InputError, VerificationError
from vht_federate.evidence.ledger_file import LedgerFile
from vht_federate.evidence.run_check import read_run
from vht_federate.evidence.trust import TrustFile
from vht_federate.signing.canonical import canonical_bytes
from vht_federate.signing.keys import PublicKey, SigningKey, unverified_claims
from vht_federate.signing.signed_manifest import seal, unseal
from vht_federate.signing.strict_json import StrictJsonError, read_json

KEY = SigningKey.generate()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-(2.0**53) + 1, 2.0**53 - 1)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_what_has_a_canonical_form_is_read_as_it_is(value: Any) -> None:
    content = canonical_bytes(value)
    assert canonical_bytes(read_json(content)) == content
    assert canonical_bytes(read_json(json.dumps(value, indent=2))) == content


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1, "a": 1}',
        b'{"a": 1, "\\u0061": 2}',
        b'{"deep": [{"x": {"b": 1, "c": 2, "b": 3}}]}',
        b'{"a": NaN}',
        b"[Infinity]",
        b"[1e999]",
        b'["\\ud800"]',
        b'{"\\udfff": 1}',
        b'["\xff"]',
        '["utf-16"]'.encode("utf-16"),
        b'\xef\xbb\xbf{"a": 1}',
        b"",
        b"{",
        b"{} {}",
    ],
)
def test_what_two_readers_may_take_for_two_things_is_refused(content: bytes) -> None:
    with pytest.raises(StrictJsonError):
        read_json(content)


@pytest.mark.hostile("twice", control=True)
def test_the_plain_reader_takes_the_last_of_two_so_the_strict_one_is_needed() -> None:
    assert json.loads(b'{"state": "failed", "state": "completed"}') == {"state": "completed"}


def _signed(header: bytes, claims: bytes) -> str:
    parts = [base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, claims)]
    signature = base64.urlsafe_b64encode(KEY.private.sign(b".".join(parts))).rstrip(b"=")
    return b".".join([*parts, signature]).decode()


HEADER = b'{"alg":"EdDSA","typ":"t","kid":"k"}'


def test_a_statement_that_says_something_once_is_read() -> None:
    assert KEY.public.verify(_signed(HEADER, b'{"epsilon":1}'), typ="t") == {"epsilon": 1}


@pytest.mark.hostile("twice")
@pytest.mark.parametrize(
    ("header", "claims"),
    [
        (HEADER, b'{"epsilon":9,"epsilon":1}'),
        (HEADER, b'{"permit":{"epsilon":9,"epsilon":1}}'),
        (b'{"alg":"EdDSA","typ":"u","typ":"t"}', b'{"epsilon":1}'),
    ],
)
def test_a_signed_statement_that_says_something_twice_is_refused(
    header: bytes, claims: bytes, answered: Answered
) -> None:
    token = _signed(header, claims)
    assert jwt.decode(token, KEY.private.public_key(), algorithms=["EdDSA"])  # its signature is genuine
    with pytest.raises(VerificationError) as caught:
        KEY.public.verify(token, typ="t")
    answered(caught.value.code)
    with pytest.raises(InputError):
        unverified_claims(token)


def test_a_sealed_json_that_says_something_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text('{"epsilon": 9, "epsilon": 1}')
    seal(tmp_path, {"kind": "k"}, KEY, typ="t", allowed=["facts.json"])
    with pytest.raises(VerificationError, match=r"facts\.json"):
        unseal(tmp_path, KEY.public, typ="t", allowed=["facts.json"], required=[])


def test_a_manifest_that_says_something_twice_is_refused_though_it_is_signed(tmp_path: Path) -> None:
    sealed = seal(tmp_path, {"kind": "k"}, KEY, typ="t", allowed=[])
    text = (sealed.folder / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"kind": "k",', '"kind": "other", "kind": "k",'))
    digest = hashlib.sha256((tmp_path / "manifest.json").read_bytes()).hexdigest()
    (tmp_path / "manifest.jws").write_text(KEY.sign({"kind": "k", "sha256": digest}, typ="t") + "\n")
    with pytest.raises(VerificationError, match=r"manifest\.json"):
        unseal(tmp_path, KEY.public, typ="t", allowed=[], required=[])


def test_readers_of_files_refuse_what_says_something_twice(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"run\.json") as refused:
        read_run(b'{"study_id": "s", "state": "failed", "state": "completed"}')
    assert refused.value.code == "VHT-VERIFY-RUN"
    assert read_run(b'{"study_id": "s", "state": "completed"}').completed
    jwk = json.dumps(KEY.public.jwk())
    (tmp_path / "key.pub.json").write_text(jwk[:-1] + f', "x": "{SigningKey.generate().public.jwk()["x"]}"}}')
    with pytest.raises(InputError):
        PublicKey.read(tmp_path / "key.pub.json")
    trust = f'{{"issuer": {jwk}, "coordinator": {jwk}, "nodes": {{"a": {jwk}, "a": {jwk}}}}}'
    (tmp_path / "trust.json").write_text(trust)
    with pytest.raises(InputError) as untrusted:
        TrustFile.read(tmp_path / "trust.json")
    assert untrusted.value.code == "VHT-INPUT-TRUST"
    (tmp_path / "trust.json").write_text(trust.replace('{"a": ', '{"b": ', 1))
    assert sorted(TrustFile.read(tmp_path / "trust.json").nodes) == ["a", "b"]
    (tmp_path / "ledger.json").write_text('{"node": "a", "node": "b"}')
    with pytest.raises(InputError, match="ledger"):
        LedgerFile.read(tmp_path / "ledger.json")
