"""The search that guards the canaries must itself be able to find them."""

import base64
import gzip
import os
import zlib

import pytest
from kit.tls_wiretap import found_in

CANARY = b"CANARY-7f3a91-family"


def _field(number: int, payload: bytes) -> bytes:
    length, out = len(payload), bytearray([number << 3 | 2])
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(out) + bytes([length]) + payload


ENCODINGS = {
    "raw": lambda b: b"noise " + b + b" noise",
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "base64": base64.b64encode,
    "base64url": base64.urlsafe_b64encode,
    "hex": lambda b: b.hex().encode(),
    "protobuf": lambda b: _field(1, b"node") + _field(2, b"prefix " + b),
    "chunked": lambda b: b"HTTP/1.1 200 OK\r\n\r\n8\r\n" + b[:8] + b"\r\n100\r\n" + b[8:],
}


@pytest.mark.parametrize("outer", ENCODINGS)
@pytest.mark.parametrize("inner", ENCODINGS)
def test_a_canary_is_found_under_two_layers_of_encoding(inner: str, outer: str) -> None:
    wrapped = ENCODINGS[outer](b"some text before, " + ENCODINGS[inner](b"x" + CANARY + b"y"))
    assert found_in(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n" + wrapped, [CANARY]) == {CANARY}


def test_nothing_is_found_where_nothing_is() -> None:
    assert found_in(os.urandom(20_000) + gzip.compress(b"harmless" * 100), [CANARY]) == set()
