"""What a source may not do: lead elsewhere, send more than was allowed, take longer, or see our token."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from kit.bulk_data_server import BulkServer
from kit.bulk_pulls import Serve, pull, quick, source

from connector.fhir.sources import (
    SourceSettings,
)
from connector.fhir.sources.retry import RetryPolicy
from connector.fhir.sources.smart_auth import BackendKey
from vht_federate.errors import InputError, RefusedError, UnavailableError

ELSEWHERE = [
    "http://169.254.169.254/latest/meta-data",
    "http://127.0.0.1:1/files/Patient",
    "file:///etc/passwd",
    "https://user:secret@127.0.0.1/x",
    "gopher://127.0.0.1/x",
    "http://127.0.0.1\\@evil/x",
    "//evil.example/files",
]


@pytest.mark.parametrize("url", ELSEWHERE)
def test_a_manifest_that_leads_elsewhere_is_refused(serve: Serve, tmp_path: Path, url: str) -> None:
    server = serve(manifest_changes={"output": [{"type": "Patient", "url": url}]})
    with pytest.raises(RefusedError) as caught:
        pull(source(server), tmp_path)
    assert caught.value.code == "VHT-REFUSED-SOURCE-ADDRESS"
    assert "evil" not in caught.value.message


def test_an_origin_that_is_listed_may_serve_the_files_without_our_token_unless_it_must_have_it(
    serve: Serve, tmp_path: Path
) -> None:
    key, jwk = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP384R1()))
    other = serve()
    for requires in (True, False):
        listed = {"output": [{"type": "Patient", "url": f"{other.origin}/files/Patient"}]}
        server = serve(public_jwk=jwk, manifest_changes={**listed, "requiresAccessToken": requires})
        settings = source(server, allowed_origins=(other.origin,), authorization={"client_id": "client-1", "key": key})
        assert pull(settings, tmp_path / str(requires)).lines == 5
        assert ("authorization" in other.downloads("Patient")[-1]) is requires


def test_a_redirect_is_followed_only_where_it_may_lead(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    server.manifest_changes = {"output": [{"type": "Patient", "url": f"{server.origin}/files/Patient/"}]}
    assert pull(source(server), tmp_path).lines == 5  # the trailing slash is redirected
    assert any(url.endswith("/files/Patient/") for _, url, _ in server.asked)


def test_what_is_no_ndjson_is_not_kept(serve: Serve, tmp_path: Path) -> None:
    server = serve({"Patient": []}, padding=b"<Bundle xmlns='http://hl7.org/fhir'/>")
    server.manifest_changes = {"output": [{"type": "Patient", "url": f"{server.origin}/files/Patient"}]}
    with pytest.raises(UnavailableError, match="no NDJSON"):
        pull(source(server), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"transactionTime": None}, {"output": "all"}, {"link": [{"relation": "next", "url": "/fhir/Patient?_count=1"}]}],
)
def test_a_manifest_that_cannot_be_read_is_a_typed_error(serve: Serve, tmp_path: Path, changes: dict[str, Any]) -> None:
    server = serve(manifest_changes=changes)
    with pytest.raises(UnavailableError) as caught:
        pull(source(server), tmp_path)
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-ANSWER"


def test_more_than_was_allowed_is_not_written(serve: Serve, tmp_path: Path) -> None:
    for mode in ("export", "search"):
        with pytest.raises(UnavailableError) as caught:
            pull(source(serve(), mode=mode, maximum_bytes=30_000), tmp_path / mode)
        assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-SIZE"
        written = sum(path.stat().st_size for path in (tmp_path / mode / "run" / "data").iterdir())
        assert written <= 30_000


def write_key(path: Path, private: Any) -> tuple[str, dict[str, Any]]:
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(path), BackendKey.read(path).jwk


@pytest.mark.parametrize("kind", ["ES384", "RS384"])
def test_a_server_with_smart_backend_services_lets_us_in(serve: Serve, tmp_path: Path, kind: str) -> None:
    private = ec.generate_private_key(ec.SECP384R1()) if kind == "ES384" else rsa.generate_private_key(65537, 2048)
    key, jwk = write_key(tmp_path / "key.pem", private)
    assert jwk["alg"] == kind
    assert not {"d", "p", "q"} & jwk.keys()
    server = serve(public_jwk=jwk)
    settings = source(server, authorization={"client_id": "client-1", "key": key})
    assert pull(settings, tmp_path / "home").lines == 305
    assert len(server.tokens) == 1
    wrong = settings.model_copy(
        update={"authorization": settings.authorization.model_copy(update={"client_id": "client-2"})}  # type: ignore[union-attr]
    )
    with pytest.raises(UnavailableError, match="400 invalid_client") as caught:
        pull(wrong, tmp_path / "other")
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-TOKEN"


def test_a_token_that_expired_in_the_middle_is_renewed_with_a_new_assertion(serve: Serve, tmp_path: Path) -> None:
    key, jwk = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP384R1()))
    server = serve(public_jwk=jwk, files=4)
    settings = source(server, authorization={"client_id": "client-1", "key": key})

    def expire(_: float) -> None:
        server.tokens.clear()

    pulled = pull(settings, tmp_path / "home", pace=RetryPolicy(60.0, sleep=expire))
    assert pulled.lines == 305
    assert len(server.jtis) == 3


ENDLESS = ["/fhir/.well-known/smart-configuration", "/token", "/fhir/Patient/$export", "/fhir/Patient"]


def endless(serve: Serve, tmp_path: Path, path: str, **behaviour: Any) -> tuple[BulkServer, SourceSettings]:
    """A server whose answer at ``path`` does not end, and a source that comes by there."""
    key, jwk = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP384R1()))
    server = serve(public_jwk=jwk, endless=path, **behaviour)
    mode = "search" if path == "/fhir/Patient" else "export"
    authorization = {"client_id": "client-1", "key": key}
    return server, source(server, authorization=authorization, mode=mode, level="patient")


@pytest.mark.parametrize("path", ENDLESS)
def test_an_answer_larger_than_any_of_its_kind_is_not_read_to_its_end(
    serve: Serve, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connector.fhir.sources.http_client.ANSWER_LIMIT", 1 << 20)
    server, settings = endless(serve, tmp_path, path)
    with pytest.raises(UnavailableError) as caught:
        pull(settings, tmp_path / "home", pace=quick(deadline_s=600.0))
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-ANSWER"
    assert server.served["endless"] < 32 << 20, "what left the server: the limit, and what the sockets hold"


@pytest.mark.parametrize("path", ENDLESS)
def test_an_answer_that_drips_ends_at_the_deadline(serve: Serve, tmp_path: Path, path: str) -> None:
    server, settings = endless(serve, tmp_path, path, piece=1, drip_s=0.01)
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0 if server.served.get("endless") else 0.0
        return now[0]

    with pytest.raises(UnavailableError) as caught:
        pull(settings, tmp_path / "home", pace=RetryPolicy(20.0, clock=clock, sleep=lambda _: None))
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-DEADLINE"
    assert server.served["endless"] < 65536


def test_an_answer_that_is_not_in_its_encoding_is_a_typed_error(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        pull(source(serve(encoding="gzip"), mode="search"), tmp_path)
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-ANSWER"


def test_keys_that_sign_neither_rs384_nor_es384_are_refused(tmp_path: Path) -> None:
    for private in (ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 1024)):  # noqa: S505
        with pytest.raises(InputError) as caught:
            write_key(tmp_path / "key.pem", private)
        assert caught.value.code == "VHT-INPUT-SOURCE-KEY"
